"""The base of schedules that reach `keep`: each gives its sites weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

from tokenzoo._core.validation import check_count
from tokenzoo.budget import spread
from tokenzoo.errors import BadArgumentError
from tokenzoo.parts import Fewest, Schedule


class Weighted(Schedule):
    """A schedule with one weight per site, which `tokenzoo.budget.spread` turns into counts."""

    @abstractmethod
    def weights(self, sites: int) -> tuple[float, ...]:
        """Return one weight >= 0 per site: its share of the removals, up to a common factor.

        Raises:
            BadArgumentError: the schedule does not fit this number of sites.
        """

    def counts(self, tokens: int, sites: int, keep: int, fewest: Fewest) -> tuple[int, ...]:
        """Spread the removals by the weights; the last count is exactly `keep`."""
        check_count("sites", sites)
        return spread(tokens, keep, self.weights(sites), fewest)


def equal_weights(sites: int, chosen: Iterable[int]) -> tuple[float, ...]:
    """Return 1 for the chosen sites, 0 for the others."""
    members = set(chosen)
    return tuple(float(site in members) for site in range(sites))


def too_shallow(schedule: Schedule, sites: int, advice: str) -> BadArgumentError:
    """Return the error for a schedule whose sites do not exist at this depth."""
    return BadArgumentError(f"{schedule!r} does not fit a depth of {sites}; {advice}")
