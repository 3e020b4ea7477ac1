"""Values that options must not take: of every registered part, of what combines parts, of some recipes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

import tokenzoo
from tests.properties.instances import registered
from tokenzoo._core.options import options_of
from tokenzoo.errors import BadArgumentError
from tokenzoo.matchers import (
    REST,
    Among,
    Bipartite,
    Drop,
    FarFromPivots,
    Fuse,
    GridCentres,
    JoinFirst,
    Nearest,
    Outliers,
    Parity,
    Protect,
    SelectAssign,
    Strided,
    Then,
    TopK,
)
from tokenzoo.schedules import Explicit, Geometric
from tokenzoo.scorers import CLSAttention, FeatureNorm, GraphEnergy, Similarity, attention_by

LENGTH, COSINE = FeatureNorm(), Similarity("x")
PARTS = {
    f"{name}, {kind}": made[0]
    for kind in ("scorers", "matchers", "mergers", "schedules")
    for name, made in registered(kind).items()
}
del PARTS["then, matchers"]  # which has no options by name: see below
# By the name of an option that is a part: one of another kind.
OTHERS = {
    **dict.fromkeys(("scorer", "quality", "rank"), COSINE),
    **dict.fromkeys(("pairs", "protect"), LENGTH),
    **dict.fromkeys(("stay", "split", "first", "last"), Drop()),
    "join": Strided(),
}


@pytest.mark.parametrize("name", PARTS)
def test_no_option_takes_a_word_a_bool_an_object_or_a_part_of_another_kind(name: str) -> None:
    for option in options_of(type(PARTS[name])):
        flag = isinstance(getattr(PARTS[name], option.name), bool)
        values = [object(), *((1, None) if flag else (True, "other"))]
        if option.name in OTHERS:
            values.append(OTHERS[option.name])
        if option.name == "layer":
            values.remove("other")  # the name of an encoder
        for value in values:
            with pytest.raises(BadArgumentError, match=re.escape(f"{option.name}={value!r}")):
                replace(PARTS[name], **{option.name: value})


SHARE, COUNT, POSITIVE = (-0.1, 1.1, math.nan), (0, -3, 2.5), (0, -1.0, math.inf, math.nan)


@pytest.mark.parametrize(
    ("part", "option", "values"),
    [
        ("received_attention, scorers", "stride", COUNT),
        ("received_attention, scorers", "layer", (math.nan, 1.5, [1])),
        ("feature_norm, scorers", "on", ("values", ["x"])),
        ("feature_norm, scorers", "power", (0, 3)),
        ("diversity, scorers", "k", COUNT),
        ("diversity, scorers", "tau", POSITIVE),
        ("random, scorers", "seed", (-1, 2**31, 1.5)),
        ("raters, scorers", "heads", COUNT),
        ("graph_energy, scorers", "margin", (math.nan, math.inf)),
        ("graph_energy, scorers", "alpha", POSITIVE),
        ("graph_energy, scorers", "fall", (-0.1, math.nan)),
        ("density_peak, scorers", "k", (0, -0.1, 1.5)),
        ("graph_flow, scorers", "threshold", (-1.1, 1.1)),
        ("graph_flow, scorers", "temperature", POSITIVE),
        ("graph_flow, scorers", "steps", (*COUNT, 1001)),
        ("similarity, scorers", "beta", POSITIVE),
        ("by_depth, matchers", "border", SHARE),
        ("every, matchers", "k", (1, *COUNT)),
        ("protect, matchers", "share", SHARE),
        ("lattice, matchers", "step", COUNT),
        ("medoids, matchers", "rounds", (-1, 1001)),
        ("greedy_dpp, matchers", "floor", POSITIVE),
        ("far_from_pivots, matchers", "pivots", COUNT),
        ("far_from_pivots, matchers", "text_pivots", (-1, 2.0)),
        ("thin, matchers", "per_round", COUNT),
        ("among, matchers", "share", SHARE),
        ("join_first, matchers", "share", SHARE),
        ("per_window, matchers", "size", COUNT),
        ("nearest, matchers", "group", (0.5,)),
        ("neighbour_sum, mergers", "k", COUNT),
        ("skip, schedules", "start", (-1, 1.0)),
        ("skip, schedules", "every", COUNT),
        ("first, schedules", "n", COUNT),
        ("last, schedules", "n", COUNT),
        ("increasing, schedules", "alpha", (-1.0, 65, math.nan)),
        ("decreasing, schedules", "alpha", (-1.0, 65, math.nan)),
        ("per_block, schedules", "r", (-1, 8.0)),
        ("per_block, schedules", "inflection", (-1.1, 1.1, math.nan)),
        ("once, schedules", "at", (-0.5, 1.5, math.nan)),
        ("once, schedules", "keep", POSITIVE),
    ],
)
def test_numbers_beyond_the_range_of_an_option(part: str, option: str, values: Any) -> None:
    for value in values:
        with pytest.raises(BadArgumentError, match=re.escape(f"{option}={value!r}")):
            replace(PARTS[part], **{option: value})


def each(make: Callable[[Any], object], *values: object) -> list[tuple[Callable[[], object], str]]:
    """The same call with each of some values, which the message must name."""
    return [(lambda value=value: make(value), f"={value!r}") for value in values]


def recipe(name: str, **options: object) -> tuple[Callable[[], object], str]:
    ((option, value),) = options.items()
    return lambda: tokenzoo.build(name, **options), f"{option}={value!r}"


class AsksForFrames(tokenzoo.Scorer):
    needs = frozenset({"frames"})

    def score(self, evidence: tokenzoo.Evidence) -> Any:
        raise AssertionError(evidence)


BAD: Sequence[tuple[Callable[[], object], str]] = [
    *each(
        lambda share: Then((share, Strided()), (REST, Strided())), *SHARE, 1.5, -1, True, "a", None
    ),
    (lambda: Then(), "REST"),
    (lambda: Then((0.5, Strided())), "REST"),
    (lambda: Then((REST, Strided()), (REST, Strided())), "REST"),
    (lambda: Then(Strided()), "Strided"),  # pyright: ignore[reportArgumentType]
    (lambda: Then((0.5, LENGTH), (REST, Strided())), "FeatureNorm"),  # pyright: ignore[reportArgumentType]
    *each(Geometric, 0.5),
    *[(lambda at=at: Geometric((at,)), f"at={at!r}") for at in (1.5, "3", True)],  # pyright: ignore[reportArgumentType]
    *each(Explicit, 8, "8"),
    (lambda: Explicit((8, -1)), "removals=-1"),
    (lambda: Explicit((8, 0.5)), "removals=0.5"),  # pyright: ignore[reportArgumentType]
    *each(LENGTH.discount, -0.1, math.inf, math.nan, True, "a", None),
    (lambda: LENGTH.discount(1.0, "left"), "on='left'"),  # pyright: ignore[reportArgumentType]
    (lambda: LENGTH.normalized("softmax"), "how='softmax'"),  # pyright: ignore[reportArgumentType]
    (lambda: attention_by("all"), "attention_source='all'"),  # pyright: ignore[reportArgumentType]
    # Options that do not go together.
    (lambda: Bipartite(COSINE, split=Parity(), protect=Protect(LENGTH)), "protect="),
    (lambda: Bipartite(COSINE, order="tome", protect=Protect(LENGTH)), "protect="),
    (lambda: GraphEnergy(margin=1.0, curve="gaussian"), "margin"),
    (
        lambda: FarFromPivots(CLSAttention(layer=-2), text_pivots=1),
        "CLSAttention(heads='mean', layer=-2)",
    ),
    (lambda: SelectAssign(Outliers(LENGTH), Nearest(COSINE)), "Nearest"),
    (lambda: Among(GridCentres()), "stay=GridCentres()"),
    (lambda: Among(TopK(AsksForFrames())), "frames"),
    (lambda: Among(Outliers(LENGTH)), "stay=Outliers"),
    (lambda: JoinFirst(Fuse()), "join=Fuse"),
    *[recipe(name, layer=layer) for name in ("fastv", "dart") for layer in (0, True, None)],
    *[recipe("dart", pivots=0), recipe("dart", match_reference=1)],
]


@pytest.mark.parametrize(("make", "named"), BAD)
def test_what_cannot_be_made(make: Callable[[], object], named: str) -> None:
    with pytest.raises(BadArgumentError, match=re.escape(named)):
        make()
