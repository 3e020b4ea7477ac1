"""Equal removals at the last n sites: slowest, with the smallest loss of accuracy."""

from __future__ import annotations

from dataclasses import dataclass

from tokenzoo._core.kinds import Count

from .weighted import Weighted, equal_weights, too_shallow


@dataclass(frozen=True)
class Last(Weighted):
    """The last n sites have weight 1, the others 0 (EvoPrune's Last[N])."""

    n: Count

    def weights(self, sites: int) -> tuple[float, ...]:
        """Return 1 for the last n sites, 0 for the others."""
        if self.n > sites:
            raise too_shallow(self, sites, f"take n from 1 to {sites}, or Mean() for all sites")
        return equal_weights(sites, range(sites - self.n, sites))
