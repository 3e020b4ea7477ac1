"""Removals that grow with depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tokenzoo._core.kinds import Range

from .weighted import Weighted

# With alpha = 64, floats can represent the weights of a thousand sites.
STEEPEST = 64


@dataclass(frozen=True)
class Increasing(Weighted):
    """Site l = 1..L has weight l ** alpha (EvoPrune's Increasing[alpha]).

    Args:
        alpha: from 0 (the same as `Mean`) to 64; the paper takes 1.
    """

    alpha: Annotated[float, Range(0, STEEPEST)] = 1.0

    def weights(self, sites: int) -> tuple[float, ...]:
        """Return 1, 2 ** alpha, ..., L ** alpha."""
        return ramp(sites, self.alpha)


def ramp(sites: int, alpha: float) -> tuple[float, ...]:
    """1 ** alpha, 2 ** alpha, ...; ints for an integral alpha, so that they are exact."""
    power = int(alpha) if alpha == int(alpha) else alpha
    return tuple(level**power for level in range(1, sites + 1))
