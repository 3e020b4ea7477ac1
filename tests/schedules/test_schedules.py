"""Schedules: weights and removals by table, and what does not fit; their laws are in tests/properties."""

from __future__ import annotations

import re

import pytest

from tokenzoo.budget import removals_of
from tokenzoo.errors import BadArgumentError, BudgetError
from tokenzoo.parts import Schedule
from tokenzoo.schedules import (
    Decreasing,
    Explicit,
    First,
    Geometric,
    Increasing,
    Last,
    Mean,
    Once,
    PerBlock,
    Share,
    Skip,
    tokenzoo_schedules,
)
from tokenzoo.schedules.fixed import Fixed
from tokenzoo.schedules.weighted import Weighted


def halved(n: int) -> int:
    return (n + 1) // 2


def one(n: int) -> int:
    return 1


@pytest.mark.parametrize(
    ("schedule", "depth", "expected"),
    [
        (Mean(), 4, [0, 1, 2, 3]),
        (Skip(), 26, list(range(1, 26, 2))),  # 13 sites, the first block left alone
        (Skip(start=0), 26, list(range(0, 26, 2))),
        (Skip(start=2, every=3), 12, [2, 5, 8, 11]),
        (Skip(start=11), 12, [11]),
        (First(3), 12, [0, 1, 2]),
        (First(12), 12, list(range(12))),
        (Last(3), 12, [9, 10, 11]),
        (Once(), 12, [11]),
        (Once(0), 12, [0]),
        (Once(-1), 12, [11]),
        (Once(-12), 12, [0]),
        (Once(0.0), 12, [0]),
        (Once(0.5), 24, [12]),
        (Once(0.5), 23, [12]),  # 11.5: half up
        (Once(0.29), 100, [29]),  # 28.999999999999996 in floats
        (Once(1.0), 12, [11]),
    ],
)
def test_sites_by_table(schedule: Weighted, depth: int, expected: list[int]) -> None:
    assert schedule.weights(depth) == tuple(float(site in expected) for site in range(depth))


def test_ramps() -> None:
    assert Increasing().weights(4) == (1, 2, 3, 4)
    assert Decreasing().weights(4) == (4, 3, 2, 1)
    assert Increasing(2.0).weights(3) == (1, 4, 9)
    assert Increasing(0.5).weights(4) == pytest.approx((1, 2**0.5, 3**0.5, 2))


@pytest.mark.parametrize(
    ("schedule", "keep", "tokens", "counts"),
    [
        (Increasing(), 60, 100, (96, 88, 76, 60)),
        (Skip(), 60, 100, (100, 80, 80, 60)),
        (Once(1, keep=1.5), 60, 100, (100, 90, 90, 90)),
        (Once(1, keep=2.0), 60, 100, (100,) * 4),
        # VScan: 1.5 times as many after the tower, and half as many in the language model.
        (Once(keep=1.5), 64, 576, (96,)),
        (Once(keep=0.5), 64, 96, (32,)),
        (Once(keep=0.5), 5, 100, (3,)),  # half up
        (Once(keep=0.01), 5, 100, (1,)),  # at least one
        (Once(keep=1e308), 64, 100, (100,)),  # at most all
        # The same share at each of a few sites; those that coincide are one.
        (Geometric((0, -1)), 25, 100, (50, 50, 50, 50, 25)),
        (Geometric(), 25, 100, (100, 25)),
        (Geometric(), 25, 100, (25,)),
        (Geometric(), 16, 16, (16,) * 12),
        # Halves after blocks 3, 6 and 9.
        (Geometric(), 125, 1000, (*[1000] * 3, *[500] * 3, *[250] * 3, *[125] * 3)),
        (Geometric(()), 625, 10_000, (5000, 2500, 1250, 625)),
    ],
)
def test_counts_by_table(
    schedule: Schedule, keep: int, tokens: int, counts: tuple[int, ...]
) -> None:
    assert schedule.counts(tokens, len(counts), keep, one) == counts


def test_shares_are_within_what_a_site_can_take() -> None:
    assert Geometric((0, 1)).counts(100, 2, 30, halved) == (55, 30)
    assert Geometric((0, 1)).counts(100, 2, 25, halved) == (50, 25)
    for schedule, sites, least in ((Geometric((0, 1)), 2, 25), (Once(3), 12, 50)):
        with pytest.raises(BudgetError, match=f"fewest possible is {least}"):
            schedule.counts(100, sites, 24, halved)


# What ToMe's published code (facebookresearch/ToMe, af95e4b) returns for (blocks, r, inflection).
@pytest.mark.parametrize(
    ("sites", "r", "inflection", "expected"),
    [
        (12, 8, 0.0, [8] * 12),
        (12, 13, -1.0, [26, 23, 21, 18, 16, 14, 11, 9, 7, 4, 2, 0]),
        (12, 16, 1.0, [0, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32]),
        (12, 10, 0.5, [5, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
        (12, 7, -0.3, [9, 8, 8, 7, 7, 7, 6, 6, 6, 5, 5, 5]),
        (24, 7, -0.3, [9] + [8] * 5 + [7] * 6 + [6] * 6 + [5] * 6),
        (32, 16, 1.0, [*range(31), 32]),
        (32, 10, 0.5, [5] * 4 + [n for n in range(6, 15) for _ in range(3)] + [15]),
        (1, 8, 0.5, [4]),  # where the published code divides by zero
    ],
)
def test_per_block_equals_tome(sites: int, r: int, inflection: float, expected: list[int]) -> None:
    schedule = PerBlock(r, inflection)
    assert list(schedule.removals_at(sites)) == expected
    # With tokens enough, that is what happens, whatever keep says.
    for keep in (1, 9000):
        counts = schedule.counts(10**4, sites, keep, halved)
        assert list(removals_of(10**4, counts)) == expected


def test_fixed_removals_are_padded_and_capped_by_the_matcher() -> None:
    assert Explicit([5, 3, 1]).removals_at(12) == (5, 3, 1) + (0,) * 9
    assert PerBlock(16).counts(50, 4, 1, halved) == (34, 18, 9, 5)
    assert Explicit((40, 0, 7)).counts(50, 4, 1, halved) == (25, 25, 18, 18)
    assert Explicit((40, 0, 70)).counts(50, 4, 1, one) == (10, 10, 1, 1)
    for kind in tokenzoo_schedules().values():  # only these ignore keep
        assert kind.uses_keep != issubclass(kind, Fixed | Share)


@pytest.mark.parametrize(
    ("schedule", "advice"),
    [
        (First(20), "n from 1 to 12"),
        (Last(13), "n from 1 to 12"),
        (Skip(start=12), "start from 0 to 11"),
        (Explicit((1,) * 13), "at most 12 removals"),
        (Once(12), "at from -12 to 11"),
        (Once(-13), "at from -12 to 11"),
        (Geometric((12,)), "at from -12 to 11"),
    ],
)
def test_a_schedule_too_deep_names_the_depth_and_what_fits(schedule: Schedule, advice: str) -> None:
    named = rf"{re.escape(repr(schedule))}.*depth of 12; .*{advice}"
    for keep in (16, 196):  # also where nothing is to be removed: the recipe is wrong all the same
        with pytest.raises(BadArgumentError, match=named):
            schedule.counts(196, 12, keep, halved)


@pytest.mark.parametrize("schedule", [Mean(), Once(), Once(keep=2.0), PerBlock(2), Explicit((2,))])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("tokens", 0), ("tokens", True), ("sites", 0), ("sites", 2.0)],
        *[("keep", 0), ("keep", 0.5), ("keep", None), ("keep", True)],
    ],
)
def test_bad_counts_are_named(schedule: Schedule, name: str, value: object) -> None:
    if name == "keep" and not schedule.uses_keep:
        return
    given = {"tokens": 196, "sites": 12, "keep": 1, name: value}
    with pytest.raises(BadArgumentError, match=re.escape(f"{name}={value!r}")):
        schedule.counts(**given, fewest=halved)  # pyright: ignore[reportArgumentType]
