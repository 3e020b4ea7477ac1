"""Equal removals at every second site (or every third, ...)."""

from __future__ import annotations

from dataclasses import dataclass

from tokenzoo._core.kinds import Count, Index

from .weighted import Weighted, equal_weights, too_shallow


@dataclass(frozen=True)
class Skip(Weighted):
    """Sites start, start + every, ... have weight 1, the others 0 (EvoPrune's default).

    "Every other layer" does not say which. Without the first block, the operations equal the relative
    latencies of the paper's video table; those of its image table are far above any such lower bound.

    Args:
        start: the first site that removes, from 0.
        every: steps between sites that do; 2 is every other one.
    """

    start: Index = 1
    every: Count = 2

    def weights(self, sites: int) -> tuple[float, ...]:
        """Return 1 for the sites that remove, 0 for the others."""
        if self.start >= sites:
            raise too_shallow(self, sites, f"take start from 0 to {sites - 1}")
        return equal_weights(sites, range(self.start, sites, self.every))
