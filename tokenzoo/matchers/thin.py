"""Thinning: drop the tokens with the most similar partner, round by round (VisPruner)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.kinds import Count
from tokenzoo._core.precision import comparable
from tokenzoo._core.sorting import choose, descending, ordered
from tokenzoo.evidence import Evidence
from tokenzoo.parts import PairScorer, Selector
from tokenzoo.token_map import take


@dataclass(frozen=True)
class Thin(Selector):
    """Drop duplicates in rounds, until k are left.

    In each round the list is split by parity; of the tokens at its even places, the `per_round` whose best
    partner at an odd place is most similar are dropped. The list of the next round is the remaining even
    ones, the most similar first, followed by the odd ones. So the order of the pool matters.

    Args:
        pairs: a high score means alike.
        per_round: number of tokens dropped per round; fewer in the last.
    """

    pairs: PairScorer
    per_round: Count = 8

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens, in the order of the last list: (p - k) / per_round rounds."""
        b, p = pool.shape
        left = torch.arange(p, device=pool.device).expand(b, p)  # places in the pool
        if k == 0:
            return pool[:, :0], pool
        if k == p:
            return pool, pool[:, :0]
        scores = comparable(self.pairs.score(evidence).at(pool, pool).dense())  # [b, p, p]
        worst, most = torch.finfo(scores.dtype).min, torch.finfo(scores.dtype).max
        bad = ~scores.diagonal(dim1=1, dim2=2).isfinite()  # [b, p]
        scores = scores.nan_to_num(nan=worst, posinf=worst, neginf=worst)
        while left.shape[1] > k:
            size = left.shape[1]
            odd = torch.arange(size, device=pool.device) % 2
            # Tokens that are not finite are dropped first: they go to the side that loses tokens.
            sides = ordered(odd.where(~take(bad, left), -1))
            a, others = (take(left, half) for half in sides.tensor_split([(size + 1) // 2], 1))
            drop = min(self.per_round, size - k, a.shape[1])
            rows = scores.gather(1, a[..., None].expand(-1, -1, p))
            alike = rows.gather(2, others[:, None].expand(-1, a.shape[1], -1)).amax(-1)
            order = descending(alike.masked_fill(take(bad, a), most))
            left = torch.cat([take(a, order[:, drop:]), others], 1)
        return choose(pool, left)
