"""What schedules that aim at `keep` share: they only weigh their sites."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

from tokenzoo._core.validation import check_count
from tokenzoo.budget import spread
from tokenzoo.errors import BadArgumentError
from tokenzoo.parts import Fewest, Schedule


class Weighted(Schedule):
    """A schedule that is one weight per site; `tokenzoo.budget.spread` makes counts of them."""

    @abstractmethod
    def weights(self, sites: int) -> tuple[float, ...]:
        """One weight >= 0 per site: the share of the removals that it should have, up to a factor.

        Raises:
            BadArgumentError: the schedule does not fit this number of sites.
        """

    def counts(self, tokens: int, sites: int, keep: int, fewest: Fewest) -> tuple[int, ...]:
        """Spread the removals as the weights say; the last count is `keep`, exactly."""
        check_count("sites", sites)
        return spread(tokens, keep, self.weights(sites), fewest)


def equal_weights(sites: int, chosen: Iterable[int]) -> tuple[float, ...]:
    """1 for the chosen sites, 0 for the others."""
    members = set(chosen)
    return tuple(float(site in members) for site in range(sites))


def too_shallow(schedule: Schedule, sites: int, advice: str) -> BadArgumentError:
    """The error for a schedule whose sites do not exist on a tower of this depth."""
    return BadArgumentError(f"{schedule!r} does not fit a depth of {sites}; {advice}")
