"""Greedy max-min diversity: always the token that is furthest from all chosen ones (DivPrune)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.sorting import choose, distinct, first_highest
from tokenzoo.evidence import Evidence
from tokenzoo.parts import PairScorer, Selector
from tokenzoo.token_map import take


@dataclass(frozen=True)
class MaxMin(Selector):
    """Keep tokens one by one, each with the largest distance (1 - score) to its nearest chosen one.

    The first is the token with the largest distance to its nearest neighbour.

    Args:
        pairs: a similarity, at most 1.
        repeats: a chosen token can be chosen again, as in DivPrune's code, where feature vectors are
            duplicated; fewer than k stay then.
    """

    pairs: PairScorer
    repeats: bool = False

    @property
    def ragged(self) -> bool:
        """With `repeats`, the count depends on the data."""
        return self.repeats

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens, in the order of choice; a prefix is the choice for a smaller k. O(k p)."""
        if k == 0:
            return pool[:, :0], pool
        order, _ = distinct(self._picks(evidence, pool, k), pool.shape[1])
        return choose(pool, order[:, :k])

    def lengths(self, evidence: Evidence, pool: Tensor, k: int) -> Tensor | None:
        """Return the number of distinct chosen tokens: `[b]`."""
        if not self.repeats or k == 0:
            return None
        return distinct(self._picks(evidence, pool, k), pool.shape[1])[1]

    def _picks(self, evidence: Evidence, pool: Tensor, k: int) -> Tensor:
        """Return the pool indices in order of choice: `[b, k]`."""
        p = pool.shape[1]
        scores = self.pairs.score(evidence).at(pool, pool).dense().float()  # a copy is at 0
        bad = scores.diagonal(dim1=1, dim2=2).isnan()  # [b, p]
        # A NaN token is chosen after all others, and is near no token.
        distance = (1 - scores).nan_to_num(nan=torch.inf)  # [b, p, p]
        own = torch.eye(p, dtype=torch.bool, device=pool.device)
        nearest = distance.masked_fill(own, torch.inf).amin(1).masked_fill(bad, -torch.inf)
        chosen: list[Tensor] = []
        taken = torch.zeros_like(bad)
        for step in range(k):
            # The order: good tokens, then bad ones, then chosen ones.
            score = nearest.clamp(-3, torch.finfo(nearest.dtype).max)
            if not self.repeats:
                score = score.masked_fill(taken, -torch.inf)
            pick = first_highest(score)[:, None]  # [b, 1]
            chosen.append(pick)
            taken = taken.scatter(1, pick, True)
            row = take(distance, pick).squeeze(1).masked_fill(bad, -torch.inf)  # [b, p]
            nearest = row if step == 0 else torch.minimum(nearest, row)
        return torch.cat(chosen, 1)
