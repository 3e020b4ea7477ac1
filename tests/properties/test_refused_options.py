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
        if option.name in ("layer", "since", "until"):
            values.remove("other")  # the name of an encoder
        for value in values:
            with pytest.raises(BadArgumentError, match=re.escape(f"{option.name}={value!r}")):
                replace(PARTS[name], **{option.name: value})


SHARE = (-0.1, 1.1, math.nan)


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (
            (0, -3, 2.5),
            "received_attention.stride diversity.k raters.heads graph_flow.steps every.k "
            "lattice.step far_from_pivots.pivots thin.per_round per_window.size neighbour_sum.k "
            "skip.every first.n last.n",
        ),
        (
            (-1, 1.0),
            "random.seed medoids.rounds far_from_pivots.text_pivots skip.start per_block.r",
        ),
        (SHARE, "by_depth.border protect.share among.share join_first.share"),
        (
            (0, -1.0, math.inf, math.nan),
            "diversity.tau graph_energy.alpha graph_flow.temperature similarity.beta "
            "greedy_dpp.floor once.keep",
        ),
        ((-1.1, 1.1, math.nan), "graph_flow.threshold per_block.inflection"),
        ((-0.1, math.nan, math.inf), "graph_energy.fall increasing.alpha decreasing.alpha"),
        ((-0.5, 1.5, math.nan), "once.at received_attention.layer"),
        ((math.nan, math.inf), "graph_energy.margin"),
        ((1001,), "graph_flow.steps medoids.rounds"),
        ((65,), "increasing.alpha decreasing.alpha"),
        ((0, -0.1, 1.5), "density_peak.k"),
        *[((0, 3), "feature_norm.power"), (("values", ["x"]), "feature_norm.on")],
        *[((1,), "every.k"), ((2**31,), "random.seed"), ((0.5,), "nearest.group")],
    ],
)
def test_values_beyond_the_range_of_an_option(values: tuple[Any, ...], options: str) -> None:
    parts = {name.partition(",")[0]: part for name, part in PARTS.items()}
    for part, option in (one.split(".") for one in options.split()):
        for value in values:
            with pytest.raises(BadArgumentError, match=re.escape(f"{option}={value!r}")):
                replace(parts[part], **{option: value})


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
