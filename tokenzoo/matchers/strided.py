"""Evenly spaced tokens of the pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenzoo._core.sorting import choose
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Selector


@dataclass(frozen=True)
class Strided(Selector):
    """Keep k tokens at equal distances in the order of the pool.

    Args:
        spacing: "even": places floor(i * p / k) up to the end; "floor": 0, s, 2s, ... with
            s = max(1, floor(p / k)), which leaves a remainder at the end (VisionZip's targets).
    """

    spacing: Literal["even", "floor"] = "even"

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens of the pool."""
        del evidence
        b, p = pool.shape
        place = torch.arange(k, device=pool.device)
        place = (
            place * max(1, p // max(1, k)) if self.spacing == "floor" else place * p // max(1, k)
        )
        return choose(pool, place.expand(b, k))
