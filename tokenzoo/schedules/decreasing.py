"""Removals that fall with depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tokenzoo._core.kinds import Range

from .increasing import STEEPEST, ramp
from .weighted import Weighted


@dataclass(frozen=True)
class Decreasing(Weighted):
    """Site l = 1..L has weight (L + 1 - l) ** alpha (EvoPrune's Decreasing[alpha]).

    Args:
        alpha: from 0 (the same as `Mean`) to 64; the paper takes 1.
    """

    alpha: Annotated[float, Range(0, STEEPEST)] = 1.0

    def weights(self, sites: int) -> tuple[float, ...]:
        """Return L ** alpha, ..., 2 ** alpha, 1."""
        return ramp(sites, self.alpha)[::-1]
