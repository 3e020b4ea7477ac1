"""The same removals at each of the last n sites: most accurate, and slowest."""

from __future__ import annotations

from dataclasses import dataclass

from tokenzoo._core.kinds import Count

from .weighted import Weighted, equal_weights, too_shallow


@dataclass(frozen=True)
class Last(Weighted):
    """The last n sites weigh the same, the others nothing (EvoPrune's Last[N])."""

    n: Count

    def weights(self, sites: int) -> tuple[float, ...]:
        """1 for the last n sites."""
        if self.n > sites:
            raise too_shallow(self, sites, f"take n from 1 to {sites}, or Mean() for all sites")
        return equal_weights(sites, range(sites - self.n, sites))
