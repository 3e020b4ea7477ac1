"""The same removals at every site."""

from __future__ import annotations

from dataclasses import dataclass

from .weighted import Weighted


@dataclass(frozen=True)
class Mean(Weighted):
    """All sites weigh the same (EvoPrune's Mean; ToMe's constant r, aimed at a count)."""

    def weights(self, sites: int) -> tuple[float, ...]:
        """1 for every site."""
        return (1.0,) * sites
