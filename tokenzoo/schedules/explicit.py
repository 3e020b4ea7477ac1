"""A list of removals, one per site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tokenzoo._core.kinds import Index, Words

from .fixed import Fixed
from .weighted import too_shallow


@dataclass(frozen=True)
class Explicit(Fixed):
    """Remove `removals[i]` tokens at site i, none at sites beyond the list.

    Args:
        removals: each >= 0; a list becomes a tuple.
    """

    removals: Annotated[tuple[Index, ...], Words("a tuple of ints, one per site: (16, 8, 4)")]

    def removals_at(self, sites: int) -> tuple[int, ...]:
        """The list, padded with zeros."""
        padding = sites - len(self.removals)
        if padding < 0:
            raise too_shallow(self, sites, f"pass at most {sites} removals")
        return self.removals + (0,) * padding
