"""Equal removals at every site."""

from __future__ import annotations

from dataclasses import dataclass

from .weighted import Weighted


@dataclass(frozen=True)
class Mean(Weighted):
    """All sites have weight 1 (EvoPrune's Mean; ToMe's constant r, for a given count)."""

    def weights(self, sites: int) -> tuple[float, ...]:
        """Return 1 for every site."""
        return (1.0,) * sites
