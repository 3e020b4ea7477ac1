"""Evenly spaced tokens of the image, whatever is in the pool."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.kinds import Count
from tokenzoo._core.sorting import choose, ordered
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Selector


@dataclass(frozen=True)
class Lattice(Selector):
    """Keep the tokens at every step-th place of the image, as far as they are in the pool (PruMerge+).

    The first is at half a step, and the last place of the image is never one of them, as in the authors'
    code. Where they are fewer than are to be kept, the first others of the pool fill up; where they are
    more, the first of them are kept.

    Args:
        step: None: the number of tokens divided by the number to keep, rounded down.
    """

    step: Count | None = None

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens: those of the lattice, ascending, then the others in pool order."""
        n = evidence.x.shape[1]
        step = self.step or max(1, n // max(1, k))
        on = ((pool - step // 2) % step == 0) & (pool >= step // 2) & (pool < n - 1)
        place = torch.arange(pool.shape[1], device=pool.device)
        return choose(pool, ordered(torch.where(on, pool, n + place))[:, :k])
