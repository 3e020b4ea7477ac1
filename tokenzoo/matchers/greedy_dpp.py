"""The most probable subset of a determinantal point process, greedily (CDPruner).

The kernel is quality_i * similarity_ij * quality_j: its determinant is large for tokens that matter and
differ. Each step adds the token with the largest gain, by an incremental Cholesky factor (Chen, Zhang
and Zhou, "Fast greedy MAP inference for determinantal point process", 2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.kinds import Positive
from tokenzoo._core.sorting import choose, distinct, first_highest
from tokenzoo.evidence import Evidence
from tokenzoo.parts import PairScorer, Scorer, Selector, token_scores


@dataclass(frozen=True)
class GreedyDPP(Selector):
    """Keep tokens one by one, each with the largest gain in the determinant of the kernel.

    Beyond the rank of the kernel, gains are rounding errors. A token with a gain below `floor` is still
    chosen, but does not change the gains of the others, and the count is exact.

    Args:
        pairs: similarity, positive semi-definite (the cosine is).
        quality: positive token scores.
        floor: the smallest gain that is not a rounding error.
        fails: beyond the rank, do as CDPruner's code does, which takes the root of a negative number: all
            gains become NaN, and the first token is chosen repeatedly. Fewer than k stay, and rounding
            decides how many.
    """

    pairs: PairScorer
    quality: Scorer
    floor: Positive = 1e-10
    fails: bool = False

    @property
    def ragged(self) -> bool:
        """With `fails`, the count depends on the data."""
        return self.fails

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens, in the order of choice. O(k^2 p)."""
        if k == 0:
            return pool[:, :0], pool
        order, _ = distinct(self._picks(evidence, pool, k), pool.shape[1])
        return choose(pool, order[:, :k])

    def lengths(self, evidence: Evidence, pool: Tensor, k: int) -> Tensor | None:
        """Return the number of distinct chosen tokens: `[b]`."""
        if not self.fails or k == 0:
            return None
        return distinct(self._picks(evidence, pool, k), pool.shape[1])[1]

    def _picks(self, evidence: Evidence, pool: Tensor, k: int) -> Tensor:
        """Return the pool indices in order of choice: `[b, k]`."""
        b, p = pool.shape
        weight = token_scores(self.quality, evidence)
        kernel = self.pairs.score(evidence).weighted(weight).at(pool, pool)
        gain = kernel.diagonal()  # [b, p]
        # A NaN token is chosen after all others, and does not change their gains.
        bad = ~gain.isfinite()
        gain = gain.masked_fill(bad, torch.finfo(gain.dtype).min / 2)
        factor = gain.new_zeros(b, k, p)
        taken = torch.zeros_like(gain, dtype=torch.bool)
        chosen: list[Tensor] = []
        for step in range(k):
            # NaN is the maximum: once the code fails, all gains are NaN, also those of chosen tokens.
            free = gain if self.fails else self._units(gain, bad).masked_fill(taken, -torch.inf)
            pick = first_highest(free)[:, None]  # [b, 1]
            chosen.append(pick)
            taken = taken.scatter(1, pick, True)
            before = factor[:, :step]  # [b, step, p]
            column = before.gather(2, pick[:, None].expand(b, step, 1))  # [b, step, 1]
            row = kernel.row(pick.squeeze(1)).nan_to_num(0.0, 0.0, 0.0)
            row = row - (column.mT @ before).squeeze(1)
            # Beyond the rank a gain is a rounding error, and dividing by its root would amplify it.
            own = gain.gather(1, pick)
            if self.fails:
                row = row / own.sqrt()
            else:
                row = row * own.clamp_min(self.floor).rsqrt().where(own > self.floor, 0)
            factor[:, step] = row
            gain = gain - row.square()
            if self.fails:
                gain = gain.scatter(1, pick, -torch.inf)
        return torch.cat(chosen, 1)

    def _units(self, gain: Tensor, bad: Tensor) -> Tensor:
        """Return gains in units of the floor; those below it are equal, those of bad tokens lower."""
        return (gain / self.floor).round().clamp_min(0).masked_fill(bad, -1)
