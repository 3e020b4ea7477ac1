"""Maximal marginal relevance: important tokens that are unlike those chosen before (IDPruner)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.kinds import Share
from tokenzoo._core.precision import comparable
from tokenzoo._core.sorting import choose, first_highest
from tokenzoo.evidence import Evidence
from tokenzoo.parts import PairScorer, Scorer, Selector, token_scores
from tokenzoo.token_map import take


@dataclass(frozen=True)
class MarginalRelevance(Selector):
    """Keep tokens one by one, important ones that are unlike all chosen so far.

    The first token is the most important one; each further one has the highest
    balance * importance - (1 - balance) * (highest similarity to a chosen token).

    Args:
        importance: a high score means keep; on the scale of the similarity, e.g. in [0, 1].
        pairs: a high score means alike.
        balance: weight of the importance.
    """

    importance: Scorer
    pairs: PairScorer
    balance: Share = 0.5

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens, in the order of choice; a prefix is the choice for a smaller k. O(k p)."""
        if k == 0:
            return pool[:, :0], pool
        pairs = self.pairs.score(evidence).at(pool, pool)
        scores = take(token_scores(self.importance, evidence), pool)
        known = scores.isfinite() & pairs.diagonal().isfinite()  # [b, p]
        alike = pairs.dense().where(known[:, None], 0)  # [b, p, p]
        worst = torch.finfo(alike.dtype).min
        value = scores.to(alike.dtype).where(known, worst / 2)
        free = value  # of the first token
        chosen: list[Tensor] = []
        most: Tensor | None = None
        for _ in range(k):
            pick = first_highest(comparable(free))[:, None]  # [b, 1]
            chosen.append(pick)
            row = take(alike, pick).squeeze(1)  # [b, p]
            most = row if most is None else torch.maximum(most, row)
            free = self.balance * value - (1 - self.balance) * most
            free = free.where(known, worst / 2).scatter(1, torch.cat(chosen, 1), -torch.inf)
        return choose(pool, torch.cat(chosen, 1))
