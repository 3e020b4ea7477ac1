"""K-medoids clustering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from tokenzoo._core.kinds import Range, Words
from tokenzoo._core.precision import comparable, precise
from tokenzoo._core.sorting import choose, descending, first_highest
from tokenzoo.evidence import Evidence
from tokenzoo.parts import PairScorer, Scorer, Selector, token_scores
from tokenzoo.token_map import take


@dataclass(frozen=True)
class Medoids(Selector):
    """Keep the medoid of each of k clusters.

    The first medoids are the tokens with the highest scores. In each round every token joins the nearest
    medoid, and of each cluster the token i with the lowest score_i * (sum of its distances to the members)
    becomes the medoid, so scores are weights: of two central tokens the one with the lower score is taken.

    Args:
        pairs: minus squared distances; a high score means near.
        scorer: >= 0; its highest tokens are the first medoids, and its scores the weights.
        rounds: number of rounds.
        match_reference: add up the distances to all tokens, not to the members alone, as the published
            code does.
    """

    pairs: PairScorer
    scorer: Scorer
    rounds: Annotated[int, Range(0, 1000), Words("an int >= 0, at most 1000")] = 3
    match_reference: bool = False

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens, in the order of the first medoids."""
        b = pool.shape[0]
        if k == 0:
            return pool[:, :0], pool
        scores = take(token_scores(self.scorer, evidence), pool)
        square = -self.pairs.score(evidence).at(pool, pool).dense()  # [b, p, p]
        known = square.diagonal(dim1=1, dim2=2).isfinite() & scores.isfinite()
        both, most = known[:, None] & known[..., None], torch.finfo(torch.float32).max / 2
        distance = square.clamp_min(0).sqrt().where(both, 0)
        apart = distance.masked_fill(~both, most)
        weight = precise(scores).where(known, 0)
        medoids = descending(scores.where(known, torch.nan))[:, :k]  # [b, k]
        index = torch.arange(k, device=pool.device).expand(b, k)
        for _ in range(self.rounds):
            to = take(apart, medoids)  # [b, k, p]
            nearest = first_highest(-comparable(to), 1)
            own = nearest.scatter(1, medoids, index)  # [b, p]: a medoid is in its own cluster
            member = own[:, None] == index[..., None]  # [b, k, p]
            if self.match_reference:
                cost = distance.sum(-1)[:, None] * weight[:, None]
            else:
                cost = (member.to(distance.dtype) @ distance) * weight[:, None]
            cost = cost.masked_fill(~known[:, None], most)  # the last choice in its cluster
            medoids = first_highest((-comparable(cost)).masked_fill(~member, -torch.inf))
        return choose(pool, medoids)
