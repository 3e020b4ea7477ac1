"""The search for the most tokens: what it finds where the time of a share is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tokenzoo.errors import BudgetError
from tokenzoo.evaluation.largest_share import SLACK, TRIES, largest_share

Time = Callable[[float], float]


def searched(time: Time, limit: float) -> tuple[float | None, float, list[float]]:
    shares: list[float] = []

    def measure(share: float) -> tuple[float, float]:
        shares.append(share)
        assert 0 < share < 1
        assert len(shares) <= TRIES
        return time(share), share

    return *largest_share(measure, limit), shares


@pytest.mark.parametrize(
    ("time", "limit", "best"),
    [
        (lambda share: share, 0.5, 0.5),  # the first guess
        (lambda share: 0.3 + 0.7 * share, 0.5, 0.2 / 0.7),
        (lambda share: 0.2 + 0.8 * share**2, 0.5, 0.375**0.5),  # the first guess is fast enough
        (lambda share: 0.3 + 0.7 * share**0.5, 0.5, (0.2 / 0.7) ** 2),
        (lambda share: 0.1 + 0.3 * share, 0.3, 2 / 3),  # the recipe alone makes it faster
    ],
)
def test_the_most_tokens(time: Time, limit: float, best: float) -> None:
    found, shortest, shares = searched(time, limit)
    assert found is not None
    assert time(found) <= limit * SLACK
    assert found > 0.75 * best
    assert shortest == min(map(time, shares))


@pytest.mark.parametrize("time", [lambda share: 0.6 + 0.4 * share, lambda share: 1.2])
def test_no_share_is_fast_enough(time: Time) -> None:
    found, shortest, shares = searched(time, 0.5)
    assert found is None
    assert len(shares) == TRIES
    assert shares == sorted(set(shares), reverse=True)
    assert shortest == min(map(time, shares))


def test_a_share_that_is_met_is_kept_if_a_larger_one_is_not() -> None:
    found, _, shares = searched(lambda share: 0.3 if share <= 0.5 else 0.9, 0.5)
    assert found == 0.5 < shares[1]


def reaching(least: float, time: Time) -> Time:
    def reached(share: float) -> float:
        if share < least:
            raise BudgetError(f"{share} is out of reach")
        return time(share)

    return reached


def test_shares_out_of_reach() -> None:
    """A recipe that cannot leave so few tokens: it has the time of the fewest that were tried."""
    found, _, shares = searched(reaching(0.5, lambda share: 0.6 * share), 0.45)
    assert (found, len(shares)) == (0.725, 2)
    found, shortest, shares = searched(reaching(0.4, lambda share: 0.2 + 0.8 * share), 0.35)
    assert found is None
    assert 0.5 < shortest < 0.6
    assert len(set(shares)) == TRIES
    with pytest.raises(BudgetError, match="out of reach"):
        searched(reaching(1.0, lambda share: share), 0.5)
