"""Every schedule: its weights by table, its counts exact on anything, its refusals by name."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    Skip,
    tokenzoo_schedules,
)
from tokenzoo.schedules.weighted import Weighted


def halved(n: int) -> int:
    return (n + 1) // 2


def one(n: int) -> int:
    return 1


def chosen(schedule: Weighted, sites: int) -> list[int]:
    """The sites that may remove something."""
    return [i for i, weight in enumerate(schedule.weights(sites)) if weight]


# ------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("schedule", "depth", "expected"),
    [
        (Mean(), 4, [0, 1, 2, 3]),
        (Skip(), 26, list(range(1, 26, 2))),  # 13 sites, the first block left alone
        (Skip(), 23, list(range(1, 23, 2))),  # 11 sites
        (Skip(start=0), 26, list(range(0, 26, 2))),
        (Skip(start=2, every=3), 12, [2, 5, 8, 11]),
        (Skip(start=11), 12, [11]),
        (First(3), 12, [0, 1, 2]),
        (First(12), 12, list(range(12))),
        (Last(3), 12, [9, 10, 11]),
        (Once(), 1, [0]),
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
    assert chosen(schedule, depth) == expected
    assert len(set(schedule.weights(depth)) - {0.0}) == 1  # the same for all of them


def test_ramps() -> None:
    assert Increasing().weights(4) == (1, 2, 3, 4)
    assert Decreasing().weights(4) == (4, 3, 2, 1)
    assert Increasing(2.0).weights(3) == (1, 4, 9)
    assert Increasing(0.5).weights(4) == pytest.approx((1, 2**0.5, 3**0.5, 2))
    assert Increasing(0.0).weights(3) == Mean().weights(3) == (1, 1, 1)


@pytest.mark.parametrize(
    ("schedule", "tokens", "sites", "keep", "removals"),
    [
        (Mean(), 100, 4, 60, [10, 10, 10, 10]),
        (Increasing(), 100, 4, 60, [4, 8, 12, 16]),
        (Decreasing(), 100, 4, 60, [16, 12, 8, 4]),
        (First(2), 100, 4, 60, [20, 20, 0, 0]),
        (Last(2), 100, 4, 60, [0, 0, 20, 20]),
        (Skip(), 100, 4, 60, [0, 20, 0, 20]),
        (Once(1), 100, 4, 60, [0, 40, 0, 0]),
        (Once(1, keep=1.5), 100, 4, 60, [0, 10, 0, 0]),
        (Once(1, keep=2.0), 100, 4, 60, [0, 0, 0, 0]),
    ],
)
def test_removals_by_table(
    schedule: Schedule, tokens: int, sites: int, keep: int, removals: list[int]
) -> None:
    counts = schedule.counts(tokens, sites, keep, halved)
    assert list(removals_of(tokens, counts)) == removals


@pytest.mark.parametrize(
    ("factor", "keep", "tokens", "expected"),
    [
        (1.5, 64, 576, 96),  # VScan: 1.5 times as many after the tower ...
        (0.5, 64, 96, 32),  # ... and half as many in the language model
        (0.5, 5, 100, 3),  # half up
        (0.01, 5, 100, 1),  # at least one
        (3.0, 64, 100, 100),  # at most all
        (1e308, 64, 100, 100),
    ],
)
def test_once_scales_keep(factor: float, keep: int, tokens: int, expected: int) -> None:
    assert Once(keep=factor).counts(tokens, 1, keep, one) == (expected,)


# ---------------------------------------------------------------------- schedules without keep

# What ToMe's published code (facebookresearch/ToMe, af95e4b) returns for (blocks, r, inflection).
TOME = [
    (12, 8, 0.0, [8] * 12),
    (12, 16, 0.0, [16] * 12),
    (12, 13, -1.0, [26, 23, 21, 18, 16, 14, 11, 9, 7, 4, 2, 0]),
    (12, 16, 1.0, [0, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32]),
    (12, 10, 0.5, [5, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
    (12, 7, -0.3, [9, 8, 8, 7, 7, 7, 6, 6, 6, 5, 5, 5]),
    (
        *(24, 13, -1.0),
        [26, 24, 23, 22, 21, 20, 19, 18, 16, 15, 14, 13, 12, 11, 10, 9, 7, 6, 5, 4, 3, 2, 1, 0],
    ),
    (
        *(24, 16, 1.0),
        [0, 1, 2, 4, 5, 6, 8, 9, 11, 12, 13, 15, 16, 18, 19, 20, 22, 23, 25, 26, 27, 29, 30, 32],
    ),
    (
        *(24, 10, 0.5),
        [5, 5, 5, 6, 6, 7, 7, 8, 8, 8, 9, 9, 10, 10, 11, 11, 11, 12, 12, 13, 13, 14, 14, 15],
    ),
    (24, 7, -0.3, [9] + [8] * 5 + [7] * 6 + [6] * 6 + [5] * 6),
    (
        *(32, 13, -1.0),
        [
            *(26, 25, 24, 23, 22, 21, 20, 20, 19, 18, 17, 16, 15, 15, 14, 13),
            *(12, 11, 10, 10, 9, 8, 7, 6, 5, 5, 4, 3, 2, 1, 0, 0),
        ],
    ),
    (32, 16, 1.0, [*range(31), 32]),
    (32, 10, 0.5, [5] * 4 + [n for n in range(6, 15) for _ in range(3)] + [15]),
    (32, 7, -0.3, [9] + [8] * 7 + [7] * 8 + [6] * 8 + [5] * 8),
    (32, 16, 0.0, [16] * 32),
]


@pytest.mark.parametrize(("sites", "r", "inflection", "expected"), TOME)
def test_per_block_equals_tome(sites: int, r: int, inflection: float, expected: list[int]) -> None:
    schedule = PerBlock(r, inflection)
    assert list(schedule.removals_at(sites)) == expected
    # With tokens enough, that is what happens, whatever keep says.
    counts = schedule.counts(10**4, sites, 1, halved)
    assert list(removals_of(10**4, counts)) == expected


@pytest.mark.parametrize("sites", [12, 24, 32])
def test_explicit_is_padded_as_tome_pads(sites: int) -> None:
    assert Explicit((5, 3, 1)).removals_at(sites) == (5, 3, 1) + (0,) * (sites - 3)


def test_a_single_block_has_no_slope() -> None:
    assert PerBlock(8, 0.5).removals_at(1) == (4,)  # where the published code divides by zero


def test_fixed_removals_are_capped_by_the_matcher() -> None:
    assert PerBlock(16).counts(50, 4, 1, halved) == (34, 18, 9, 5)
    assert Explicit((40, 0, 7)).counts(50, 4, 1, halved) == (25, 25, 18, 18)
    assert Explicit((40, 0, 70)).counts(50, 4, 1, one) == (10, 10, 1, 1)


def test_only_fixed_schedules_ignore_keep() -> None:
    fixed = {name for name, kind in tokenzoo_schedules().items() if not kind.uses_keep}
    assert fixed == {"per_block", "explicit"}
    assert len({PerBlock(3).counts(50, 4, keep, halved) for keep in (1, 7, 50)}) == 1


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Skip(start=-1), r"start=-1.*int >= 0"),
        (lambda: Skip(start=1.0), r"start=1\.0.*int >= 0"),
        (lambda: Skip(start=True), r"start=True.*int"),
        (lambda: Skip(every=0), r"every=0.*int >= 1"),
        (lambda: First(0), r"n=0.*int >= 1"),
        (lambda: First("3"), r"n='3'.*int >= 1"),
        (lambda: Last(-2), r"n=-2.*int >= 1"),
        (lambda: Last(0.5), r"n=0\.5.*int >= 1"),
        (lambda: Increasing(-1.0), r"alpha=-1\.0.*from 0 to 64"),
        (lambda: Increasing(math.nan), r"alpha=nan.*from 0 to 64"),
        (lambda: Increasing(65), r"alpha=65.*from 0 to 64"),
        (lambda: Decreasing(math.inf), r"alpha=inf.*from 0 to 64"),
        (lambda: Decreasing("1"), r"alpha='1'.*from 0 to 64"),
        (lambda: Decreasing(True), r"alpha=True.*from 0 to 64"),
        (lambda: PerBlock(-1), r"r=-1.*int >= 0"),
        (lambda: PerBlock(8.0), r"r=8\.0.*int >= 0"),
        (lambda: PerBlock(8, 1.5), r"inflection=1\.5.*from -1 to 1"),
        (lambda: PerBlock(8, math.nan), r"inflection=nan.*from -1 to 1"),
        (lambda: Explicit(8), r"removals=8.*\(16, 8, 4\)"),
        (lambda: Explicit("8"), r"removals='8'.*\(16, 8, 4\)"),
        (lambda: Explicit((8, -1)), r"removals=-1.*int >= 0"),
        (lambda: Explicit((8, 0.5)), r"removals=0\.5.*int >= 0"),
        (lambda: Once(True), r"at=True.*index.*fraction.*None"),
        (lambda: Once(1.5), r"at=1\.5.*index.*fraction.*None"),
        (lambda: Once(-0.5), r"at=-0\.5.*index.*fraction.*None"),
        (lambda: Once(math.nan), r"at=nan.*index.*fraction.*None"),
        (lambda: Once("last"), r"at='last'.*index.*fraction.*None"),
        (lambda: Once(keep=0), r"keep=0.*factor.*above 0"),
        (lambda: Once(keep=-1.0), r"keep=-1\.0.*factor.*above 0"),
        (lambda: Once(keep=math.inf), r"keep=inf.*factor.*above 0"),
        (lambda: Once(keep=math.nan), r"keep=nan.*factor.*above 0"),
        (lambda: Once(keep=True), r"keep=True.*factor.*above 0"),
        (lambda: Once(keep="1"), r"keep='1'.*factor.*above 0"),
    ],
)
def test_bad_options_are_refused_when_made(make: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(BadArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    ("schedule", "advice"),
    [
        (First(20), r"n from 1 to 12"),
        (Last(13), r"n from 1 to 12"),
        (Skip(start=30), r"start from 0 to 11"),
        (Skip(start=12), r"start from 0 to 11"),
        (Explicit((1,) * 13), r"at most 12 removals"),
        (Once(12), r"at from -12 to 11"),
        (Once(-13), r"at from -12 to 11"),
    ],
)
def test_a_schedule_too_deep_names_the_depth_and_what_fits(schedule: Schedule, advice: str) -> None:
    for keep in (16, 196):  # also where nothing is to be removed: the recipe is wrong all the same
        with pytest.raises(
            BadArgumentError, match=rf"{re.escape(repr(schedule))}.*depth of 12; .*{advice}"
        ):
            schedule.counts(196, 12, keep, halved)


@pytest.mark.parametrize("schedule", [Mean(), Skip(), Once(), PerBlock(2), Explicit((2,))])
@pytest.mark.parametrize(
    ("tokens", "sites", "message"),
    [
        (0, 12, "tokens=0"),
        (True, 12, "tokens=True"),
        (196, 0, "sites=0"),
        (196, 2.0, r"sites=2\.0"),
    ],
)
def test_bad_shapes_are_named(schedule: Schedule, tokens: int, sites: int, message: str) -> None:
    with pytest.raises(BadArgumentError, match=message):
        schedule.counts(tokens, sites, 1, halved)


@pytest.mark.parametrize("keep", [0, 0.5, None, True])
@pytest.mark.parametrize("schedule", [Mean(), Once(), Once(keep=2.0)])
def test_bad_keeps_are_named(schedule: Schedule, keep: int) -> None:
    with pytest.raises(BadArgumentError, match=rf"keep={keep!r}"):
        schedule.counts(196, 12, keep, halved)


def test_a_single_site_that_cannot_reach_keep_says_how_far_it_goes() -> None:
    with pytest.raises(BudgetError, match="fewest possible is 98"):
        Once(3).counts(196, 12, 64, halved)


# ---------------------------------------------------------------------------------- properties


@st.composite
def weighted(draw: st.DrawFn, sites: int) -> Weighted:
    alpha = draw(st.floats(0, 8))
    n = draw(st.integers(1, sites))
    kinds = [
        *(Mean(), Skip(n - 1, draw(st.integers(1, 4))), First(n), Last(n)),
        *(Increasing(alpha), Decreasing(alpha), Once(n - 1), Once(-n), Once(n / sites)),
    ]
    return draw(st.sampled_from(kinds))


@given(st.data(), st.integers(1, 800), st.integers(1, 40))
@settings(max_examples=300)
def test_weighted_schedules_are_exact_and_lawful(
    data: st.DataObject, tokens: int, sites: int
) -> None:
    schedule = data.draw(weighted(sites))
    fewest = data.draw(st.sampled_from([halved, one, lambda n: n - n // 4]))
    least = tokens
    for _ in chosen(schedule, sites):
        least = fewest(least)
    keep = data.draw(st.integers(least, tokens))
    counts = schedule.counts(tokens, sites, keep, fewest)
    assert len(counts) == sites
    assert counts[-1] == keep
    before = tokens
    for weight, after in zip(schedule.weights(sites), counts, strict=True):
        assert fewest(before) <= after <= before
        assert weight or after == before
        before = after
    assert counts == schedule.counts(tokens, sites, keep, fewest)


@given(st.integers(0, 60), st.floats(-1, 1), st.integers(1, 40), st.integers(1, 400))
@settings(max_examples=300)
def test_per_block_never_takes_more_than_there_is(
    r: int, inflection: float, sites: int, tokens: int
) -> None:
    schedule = PerBlock(r, inflection)
    removals = removals_of(tokens, schedule.counts(tokens, sites, 1, halved))
    left = tokens
    for wanted, removed in zip(schedule.removals_at(sites), removals, strict=True):
        assert removed == min(wanted, left // 2)
        left -= removed


def drawn(rng: random.Random, depth: int) -> Weighted:
    """Any schedule that fits this depth."""
    n = rng.randint(1, depth)
    alpha = rng.choice([0.5, 1.0, 1.7, 3.0])
    makes: list[Callable[[], Weighted]] = [
        *(Mean, lambda: Skip(n - 1, rng.randint(1, 4)), lambda: First(n), lambda: Last(n)),
        *(lambda: Increasing(alpha), lambda: Decreasing(alpha), lambda: Once(rng.random())),
    ]
    return rng.choice(makes)()


def outcome(schedule: Schedule, *shape: int, fewest: Callable[[int], int]) -> tuple[int, ...] | int:
    """The counts, or the fewest possible that the error names."""
    try:
        return schedule.counts(*shape, fewest)
    except BudgetError as error:
        named = re.search(r"fewest possible is (\d+)", str(error))
        return int(named[1]) if named else 0


def test_twenty_thousand_budgets_are_exact_or_name_the_fewest() -> None:
    rng = random.Random(20261120)
    refused = 0
    for _ in range(20_000):
        tokens, depth = rng.randint(1, 1100), rng.randint(1, 40)
        keep, fewest = rng.randint(1, min(tokens, 128)), rng.choice([halved, halved, one])
        schedule = drawn(rng, depth)
        counts = outcome(schedule, tokens, depth, keep, fewest=fewest)
        if isinstance(counts, int):
            refused += 1
            assert counts > keep, (schedule, tokens, depth)
            reached = outcome(schedule, tokens, depth, counts, fewest=fewest)
            below = outcome(schedule, tokens, depth, counts - 1, fewest=fewest)
            assert isinstance(reached, tuple)
            assert reached[-1] == below == counts, (schedule, tokens, depth)
        else:
            assert len(counts) == depth
            assert counts[-1] == keep, (schedule, tokens, depth)
    assert 2000 < refused < 15_000  # both sides were tried


# ------------------------------------------------------------------------------------- plumbing


def test_the_same_share_at_each_of_a_few_sites() -> None:
    counts = Geometric().counts(1000, 12, 125, one)
    # Halves, up to the rounding of whole removals, after blocks 3, 6 and 9.

    assert counts[2] == 1000
    assert abs(counts[3] - 500) <= 1
    assert abs(counts[6] - 250) <= 1
    assert counts[9:] == (125, 125, 125)
    every = Geometric(()).counts(10_000, 4, 625, one)
    assert [abs(c - w) <= 2 for c, w in zip(every, [5000, 2500, 1250, 625], strict=True)] == [
        True
    ] * 4
    assert Geometric((0, -1)).counts(100, 5, 25, one) == (50, 50, 50, 50, 25)
    # Sites that coincide are one, and where nothing is to go nothing goes.
    assert Geometric().counts(100, 2, 25, one) == (100, 25)
    assert Geometric().counts(100, 1, 25, one) == (25,)
    assert Geometric().counts(16, 12, 16, one) == (16,) * 12


def test_shares_are_within_what_a_site_can_take() -> None:
    assert Geometric((0, 1)).counts(100, 2, 30, halved) == (55, 30)
    assert Geometric((0, 1)).counts(100, 2, 25, halved) == (50, 25)
    with pytest.raises(BudgetError, match="25"):
        Geometric((0, 1)).counts(100, 2, 24, halved)


@pytest.mark.parametrize("at", [0.5, (1.5,), ("3",), (True,)])
def test_sites_that_are_none(at: object) -> None:
    with pytest.raises(BadArgumentError, match="at="):
        Geometric(at)  # pyright: ignore[reportArgumentType]


def test_a_site_that_a_shallow_tower_lacks() -> None:
    with pytest.raises(BadArgumentError, match="depth of 3"):
        Geometric((4,)).counts(100, 3, 25, one)


MADE = [
    *(Mean(), Skip(), First(3), Last(2), Increasing(0.5), Decreasing(2.0)),
    *(PerBlock(8, -0.3), Explicit((4, 2)), Once(0.5, keep=1.5), Geometric((0.5, -1))),
]


@pytest.mark.parametrize("schedule", MADE, ids=lambda schedule: type(schedule).__name__)
def test_parts_are_frozen_and_their_repr_builds_them(schedule: Schedule) -> None:
    assert type(schedule) in tokenzoo_schedules().values()
    assert eval(repr(schedule)) == schedule
    assert hash(schedule) == hash(eval(repr(schedule)))
    with pytest.raises(FrozenInstanceError):
        schedule.start = 5
    assert schedule.counts(196, 12, 196, halved)


def test_all_names_are_registered_and_tried_here() -> None:
    assert list(tokenzoo_schedules()) == [
        *(
            "mean",
            "skip",
            "first",
            "last",
            "increasing",
            "decreasing",
            "geometric",
            "per_block",
            "explicit",
            "once",
        )
    ]
    assert {type(schedule) for schedule in MADE} == set(tokenzoo_schedules().values())


def test_a_list_of_removals_becomes_a_tuple() -> None:
    assert Explicit([4, 2]) == Explicit((4, 2))
