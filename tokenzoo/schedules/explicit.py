"""The removals of each site, one by one."""

from __future__ import annotations

from dataclasses import dataclass

from tokenzoo.checks import check_count
from tokenzoo.errors import BadArgumentError

from .fixed import Fixed
from .weighted import too_shallow


@dataclass(frozen=True)
class Explicit(Fixed):
    """Remove `removals[i]` tokens at site i, and none at the sites after the list.

    Args:
        removals: each >= 0; a list becomes a tuple.
    """

    removals: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.removals, tuple | list):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise BadArgumentError(
                f"removals={self.removals!r}; it is a tuple of ints, one per site: (16, 8, 4)"
            )
        for removal in self.removals:
            check_count("removals", removal, least=0)
        object.__setattr__(self, "removals", tuple(self.removals))

    def removals_at(self, sites: int) -> tuple[int, ...]:
        """The list, padded with zeros."""
        padding = sites - len(self.removals)
        if padding < 0:
            raise too_shallow(self, sites, f"give at most {sites} removals")
        return self.removals + (0,) * padding
