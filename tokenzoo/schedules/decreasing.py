"""Many removals early, few late."""

from __future__ import annotations

from dataclasses import dataclass

from tokenzoo.checks import check_number

from .increasing import STEEPEST, ramp
from .weighted import Weighted


@dataclass(frozen=True)
class Decreasing(Weighted):
    """Site l = 1..L weighs (L + 1 - l) ** alpha (EvoPrune's Decreasing[alpha]).

    Args:
        alpha: from 0 (the same as `Mean`) to 64; the paper takes 1.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, 0, STEEPEST)

    def weights(self, sites: int) -> tuple[float, ...]:
        """The site's number, counted from the end, to the power of alpha."""
        return ramp(sites, self.alpha)[::-1]
