"""Counts are exact, known in advance, and the ones that the rule in docs/budgets.md says."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenzoo.budget import TokenBudget, block_flops, capped, removals_of, resolve_keep, spread
from tokenzoo.errors import BadArgumentError, BudgetError

ROOT = Path(__file__).parents[1]
Fewest = Callable[[int], int]


def halved(n: int) -> int:
    return (n + 1) // 2


def one(n: int) -> int:
    return 1


# ---------------------------------------------------------------------------------------- keep


@pytest.mark.parametrize(
    ("keep", "tokens", "expected"),
    [
        *[(64, 729, 64), (64, 64, 64), (64, 16, 16), (1, 1, 1), (729, 729, 729)],
        *[(0.25, 729, 182), (0.25, 576, 144), (1.0, 729, 729), (1e-9, 729, 1), (0.5, 1, 1)],
        # Halves go up, also where Python's round would go down to the even number.
        *[(0.5, 5, 3), (0.25, 10, 3), (0.5, 1, 1), (0.5, 3, 2), (0.125, 4, 1)],
    ],
)
def test_keep_counts_or_is_a_fraction(keep: int | float, tokens: int, expected: int) -> None:
    assert resolve_keep(keep, tokens) == expected


@given(st.integers(1, 5000), st.floats(0, 1, exclude_min=True), st.floats(0, 1, exclude_min=True))
@settings(max_examples=300)
def test_fractions_are_monotone_and_within_half_a_token(tokens: int, a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert 1 <= resolve_keep(low, tokens) <= resolve_keep(high, tokens) <= tokens
    assert abs(max(1, high * tokens) - resolve_keep(high, tokens)) <= 0.5 + 1e-9


# -------------------------------------------------------------------------------------- spread


@pytest.mark.parametrize(
    ("tokens", "keep", "weights", "fewest", "removals"),
    [
        # EvoPrune's three video settings, and a surplus that the latest sites give back.
        (729, 64, [1] * 13, halved, [52] * 2 + [51] * 11),
        (729, 32, [1] * 13, halved, [56] * 9 + [55] * 3 + [28]),
        (729, 16, [1] * 13, halved, [61] * 9 + [60, 59, 30, 15]),
        (100, 90, [1] * 4, halved, [3, 3, 2, 2]),
        # A site that takes exactly what it is asked for was not cut, so it gives back too.
        (3, 2, [1, 1], halved, [1, 0]),
        # The weights' scale means nothing; zeros remove nothing.
        (100, 90, [1e-300] * 4, halved, [3, 3, 2, 2]),
        (100, 90, [0, 1, 0, 1], halved, [0, 5, 0, 5]),
        (100, 40, [1, 2, 3], one, [10, 20, 30]),
        (100, 39, [1, 2, 3], one, [10, 20, 31]),
        (100, 41, [1, 2, 3], one, [10, 20, 29]),
        (100, 41, [Fraction(1, 3), Fraction(2, 3), 1], one, [10, 20, 29]),
        # A site without tokens to give takes nothing, and the others make up for it.
        (8, 1, [1, 1, 1], halved, [4, 2, 1]),
        (8, 1, [1, 1, 1], one, [3, 3, 1]),
        (100, 1, [5], one, [99]),
        # Nothing to remove: all stay, whatever the weights.
        (16, 16, [1, 1], halved, [0, 0]),
        (16, 64, [1, 1], halved, [0, 0]),
        (16, 64, [0, 0], halved, [0, 0]),
        (1, 1, [1], halved, [0]),
        # Steep weights, and fewer tokens than their sites can leave of themselves.
        (100, 50, [1e-300, 1, 1e300], one, [0, 0, 50]),
        (100, 14, [1e-300, 1, 1e300], halved, [44, 28, 14]),
        (100, 13, [1e-300, 1, 1e300], halved, [48, 26, 13]),
        (729, 92, [0, 1, 1, 1, 0], halved, [0, 361, 184, 92, 0]),
    ],
)
def test_removals_by_table(
    tokens: int, keep: int, weights: list[float], fewest: Fewest, removals: list[int]
) -> None:
    counts = spread(tokens, keep, weights, fewest)
    assert list(removals_of(tokens, counts)) == removals


@st.composite
def monotone(draw: st.DrawFn, highest: int, jumps: int) -> Fewest:
    """A `fewest` with 1 <= fewest(n) <= n that never falls and grows by `jumps` a token at most."""
    table = [0]
    for n in range(1, highest + 1):
        table.append(max(1, min(n, table[-1] + draw(st.integers(0, jumps)))))
    return table.__getitem__


def literal(tokens: int, keep: int, weights: list[Fraction], fewest: Fewest) -> tuple[int, ...]:
    """The rule as docs/budgets.md says it, with every candidate for c tried in turn."""
    candidates = sorted({k / w for w in weights if w for k in range(tokens + 1)})
    for c in candidates:
        asks = [math.floor(c * w) for w in weights]
        counts = capped(tokens, asks, fewest)
        if counts[-1] <= keep:
            break
    removals = list(removals_of(tokens, counts))
    surplus = keep - counts[-1]
    for i in reversed(range(len(weights))):
        if surplus and removals[i] and removals[i] == asks[i]:
            removals[i] -= 1
            surplus -= 1
    assert surplus == 0  # one round is enough: c is the smallest
    return tuple(tokens - sum(removals[: i + 1]) for i in range(len(removals)))


@st.composite
def problems(draw: st.DrawFn, jumps: int = 1) -> tuple[int, int, list[Fraction], Fewest]:
    tokens = draw(st.integers(1, 40))
    weight = st.fractions(0, 8, max_denominator=6) | st.just(Fraction(1))
    weights = draw(st.lists(weight, min_size=1, max_size=7))
    some = st.sampled_from([halved, one, lambda n: n - n // 4])
    fewest = draw(some | monotone(tokens, jumps))
    keep = draw(st.integers(1, tokens + 1))
    return tokens, keep, weights, fewest


def lowest(tokens: int, weights: list[Fraction], fewest: Fewest) -> int:
    for weight in weights:
        tokens = fewest(tokens) if weight else tokens
    return tokens


@given(problems())
@settings(max_examples=400)
def test_bisection_equals_the_literal_rule(problem: tuple) -> None:
    tokens, keep, weights, fewest = problem
    if keep >= tokens:
        assert spread(*problem) == (tokens,) * len(weights)
    elif not any(weights) or lowest(tokens, weights, fewest) > keep:
        with pytest.raises(BadArgumentError):
            spread(*problem)
    else:
        assert spread(*problem) == literal(*problem)


@given(problems(jumps=4))
@settings(max_examples=400)
def test_counts_are_exact_monotone_and_never_below_fewest(problem: tuple) -> None:
    # jumps=4: one token more can let a site take three less; still exact.
    tokens, keep, weights, fewest = problem
    least = lowest(tokens, weights, fewest)
    keep = max(keep, least)
    counts = spread(tokens, keep, weights, fewest)
    assert counts[-1] == min(keep, tokens)
    for (before, after), weight in zip(pairwise((tokens, *counts)), weights, strict=True):
        assert fewest(before) <= after <= before
        assert weight or after == before
    if any(weights) and 1 < least < tokens:
        with pytest.raises(BudgetError, match=rf"fewest possible is {least}\b"):
            spread(tokens, least - 1, weights, fewest)


@given(st.data(), st.integers(1, 40), st.integers(1, 40), st.integers(1, 6))
@settings(max_examples=300)
def test_even_a_fewest_without_order_gives_exact_counts(
    data: st.DataObject, tokens: int, keep: int, sites: int
) -> None:
    # Then "the smallest c" means little, and the fewest is what all sites at their limit leave.
    fewest = [0, *(data.draw(st.integers(1, n)) for n in range(1, tokens + 1))].__getitem__
    try:
        counts = spread(tokens, keep, [1] * sites, fewest)
    except BudgetError:
        assert lowest(tokens, [Fraction(1)] * sites, fewest) > keep
    else:
        assert counts[-1] == min(keep, tokens)
        steps = pairwise((tokens, *counts))
        assert all(fewest(before) <= after <= before for before, after in steps)


@pytest.mark.parametrize(
    ("tokens", "asks", "fewest", "expected"),
    [
        (16, [3, 0, 100, 1], halved, (13, 13, 7, 6)),
        (16, [16], halved, (8,)),
        (16, [], halved, ()),
        (5, [5, 5], lambda n: 0, (1, 1)),  # a last token stays
        (5, [5, 5], lambda n: 7, (5, 5)),  # more than there are: all
    ],
)
def test_capped_takes_what_there_is(
    tokens: int, asks: list[int], fewest: Fewest, expected: tuple[int, ...]
) -> None:
    assert capped(tokens, asks, fewest) == expected


# -------------------------------------------------------------------------------------- budget


def skip_counts(tokens: int, depth: int, keep: int, start: int) -> tuple[int, ...]:
    weights = [float(i >= start and (i - start) % 2 == 0) for i in range(depth)]
    return spread(tokens, keep, weights, halved)


SIGLIP = {"tokens": 729, "entering": 729, "width": 1152, "hidden": 4304}
CLIP = {"tokens": 576, "entering": 576, "width": 1024, "hidden": 4096}


@pytest.mark.parametrize(
    ("tower", "depth", "start", "floors"),
    [
        (SIGLIP, 26, 1, {64: 0.540, 32: 0.502, 16: 0.464}),
        (CLIP, 23, 1, {128: 0.590, 64: 0.534, 32: 0.490}),
        (SIGLIP, 26, 0, {64: 0.504, 32: 0.465, 16: 0.427}),
    ],
)
def test_floors_of_evoprune(tower: dict, depth: int, start: int, floors: dict[int, float]) -> None:
    """Without prefix tokens; CLS adds less than a thousandth: 0.591, 0.535 and 0.491 for CLIP."""
    for keep, floor in floors.items():
        blocks = skip_counts(tower["tokens"], depth, keep, start)
        without, with_cls = (
            TokenBudget(**tower, blocks=blocks, features=keep, prefix=p).flops for p in (0, 1)
        )
        assert round(without, 3) == floor
        assert 0 < with_cls - without < 1e-3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # 3 tokens of width 2: four 2x2 projections (2 * 3 * 4 each), q k^T and a v (2 * 9 * 2 each);
        # then 2 tokens through 2 -> 5 -> 2 (2 * 2 * 10 each).
        ({}, 4 * 24 + 2 * 36 + 2 * 40),
        # 3 tokens of 4 patches: 12 rows; the MLP sees 2 tokens, 8 rows.
        ({"patches": 4}, 8 * 12 * 4 + 4 * 144 * 2 + 4 * 8 * 10),
        # In a window of half a token's worth fewer pairs are formed: 12 rows attend with 4 * 1.5.
        ({"patches": 4, "seen": 1.5}, 8 * 12 * 4 + 4 * 12 * 6 * 2 + 4 * 8 * 10),
    ],
)
def test_flops_of_a_block_by_hand(options: dict[str, Any], expected: int) -> None:
    assert block_flops(3, 2, width=2, hidden=5, **options) == expected


@pytest.mark.parametrize(
    ("blocks", "reach", "seen"),
    [
        ((64, 32, 32), (16, 16, 0), (16, 16, 32)),  # the third block sees all that is left
        # What is left of a window of 16 out of 64 tokens, when 32 are left: 8.
        ((32, 32, 32), (16, 16, 16), (16, 8, 8)),
        ((64, 32, 32), (64, 0, 100), (64, 64, 32)),  # a window that holds the image is none
    ],
)
def test_windows_lose_as_large_a_share_as_the_image(
    blocks: tuple[int, ...], reach: tuple[int, ...], seen: tuple[int, ...]
) -> None:
    size = {"width": 8, "hidden": 16, "patches": 4}
    budget = TokenBudget(tokens=64, entering=64, features=32, blocks=blocks, reach=reach, **size)
    sites = zip((64, *blocks), blocks, seen, strict=False)
    cost = sum(block_flops(before, after, seen=pairs, **size) for before, after, pairs in sites)
    whole = sum(block_flops(64, 64, seen=min(pairs or 64, 64), **size) for pairs in reach)
    assert budget.flops == pytest.approx(cost / whole, rel=1e-12)


def test_nothing_removed_costs_all_and_a_smaller_image_saves_everywhere() -> None:
    whole = TokenBudget(**SIGLIP, blocks=(729,) * 26, features=729)
    assert whole.flops == 1.0
    small = {**SIGLIP, "entering": 100}
    shrunk = TokenBudget(**small, blocks=(100,) * 26, features=100)
    full, less = (block_flops(n, n, width=1152, hidden=4304) for n in (729, 100))
    assert shrunk.flops == less / full
    assert TokenBudget(**CLIP, blocks=(), features=64).flops == 1.0  # reduced after the tower only


def test_a_budget_prints_on_a_few_short_lines() -> None:
    blocks = skip_counts(729, 26, 16, 1)
    plan = TokenBudget(**SIGLIP, blocks=blocks, features=16, layers=((2, 8),))
    text = str(plan)
    assert "729 patch tokens" in text
    assert "729, 668 x 2, 607 x 2" in text
    assert "0.464 of the unreduced" in text
    assert [line.split()[0] for line in text.splitlines()] == [
        *("image", "blocks", "features", "llm", "operations")
    ]
    assert "llm" not in str(TokenBudget(**SIGLIP, blocks=blocks, features=16))
    several = TokenBudget(**SIGLIP, blocks=blocks, features=16, layers=((2, 8), (4, 5)))
    assert "llm         8 from layer 2 on, 5 from layer 4 on" in str(several)
    assert (several.llm, several.visual) == (5, 16)
    assert "prefix" not in text
    assert "576 + 1 prefix" in str(TokenBudget(**CLIP, blocks=(576,), features=576, prefix=1))


def test_the_page_has_the_tables_that_the_script_prints() -> None:
    printed = runpy.run_path(str(ROOT / "benchmarks" / "print_budgets.py"))["page"]()
    assert printed.count("\n|---") == 4
    assert printed in (ROOT / "docs" / "budgets.md").read_text(encoding="utf-8")
