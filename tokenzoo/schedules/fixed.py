"""The base of schedules that fix the removals themselves; they do not use `keep`."""

from __future__ import annotations

from abc import abstractmethod

from tokenzoo._core.validation import check_count
from tokenzoo.budget import capped
from tokenzoo.parts import Fewest, Schedule


class Fixed(Schedule):
    """A schedule with a number of removals per site, capped by what the matcher can remove there."""

    uses_keep = False

    @abstractmethod
    def removals_at(self, sites: int) -> tuple[int, ...]:
        """The removals wanted at each site, >= 0.

        Raises:
            BadArgumentError: the schedule does not fit this number of sites.
        """

    def counts(self, tokens: int, sites: int, keep: int, fewest: Fewest) -> tuple[int, ...]:
        """Return the counts after these removals, each capped by what the matcher can remove."""
        del keep
        check_count("tokens", tokens)
        check_count("sites", sites)
        return capped(tokens, self.removals_at(sites), fewest)
