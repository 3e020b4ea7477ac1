"""Few removals early, many late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tokenzoo._core.kinds import Range

from .weighted import Weighted

# Site 2 then weighs 2 ** 64 times as much as site 1, and floats hold a thousand sites.
STEEPEST = 64


@dataclass(frozen=True)
class Increasing(Weighted):
    """Site l = 1..L weighs l ** alpha (EvoPrune's Increasing[alpha]).

    Args:
        alpha: from 0 (the same as `Mean`) to 64; the paper takes 1.
    """

    alpha: Annotated[float, Range(0, STEEPEST)] = 1.0

    def weights(self, sites: int) -> tuple[float, ...]:
        """The site's number, from 1, to the power of alpha."""
        return ramp(sites, self.alpha)


def ramp(sites: int, alpha: float) -> tuple[float, ...]:
    """1 ** alpha, 2 ** alpha, ...; ints for a whole alpha, so that no library's pow decides."""
    power = int(alpha) if alpha == int(alpha) else alpha
    return tuple(level**power for level in range(1, sites + 1))
