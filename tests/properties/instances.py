"""What is held to the properties: every registered part and recipe, as it is by default and in other forms.

A registered part that can be made without arguments is here by being registered. One that cannot is made by
hand below; `test_every_registered_part_is_tried` fails where that is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import settings

import tokenzoo
from tokenzoo import Recipe, Stage, Step, plugins
from tokenzoo.errors import BadArgumentError
from tokenzoo.matchers import (
    REST,
    Alternate,
    Among,
    Bipartite,
    ByDepth,
    Drop,
    Every,
    FarFromPivots,
    Fuse,
    GreedyDPP,
    GridCentres,
    Halves,
    JoinFirst,
    Lattice,
    MaxMin,
    Medoids,
    Nearest,
    Outliers,
    Parity,
    PerWindow,
    Protect,
    Sampled,
    SelectAssign,
    Strided,
    Then,
    Thin,
    TopK,
    WholeRows,
)
from tokenzoo.mergers import Fused, Identity, NeighbourSum, WeightedMean
from tokenzoo.parts import Part
from tokenzoo.schedules import (
    Decreasing,
    Explicit,
    First,
    Geometric,
    Increasing,
    Last,
    Once,
    PerBlock,
    Skip,
)
from tokenzoo.scorers import (
    CLSAttention,
    DensityPeak,
    Diversity,
    FeatureNorm,
    GraphEnergy,
    GraphFlow,
    LastTokenAttention,
    NegativeSquaredDistance,
    Raters,
    ReceivedAttention,
    Similarity,
    TextRelevance,
    TextSoftmax,
    ValueWeighted,
)
from tokenzoo.testing import PROPERTIES
from tokenzoo.testing.subjects import kind_of, required_of

# Few examples in every run; under HYPOTHESIS_PROFILE=thorough as many as that profile says.
EXAMPLES = max(8, settings.default.max_examples if settings.default.max_examples > 100 else 0)

cosine, length = Similarity("x"), FeatureNorm()

# By registered name: parts that take arguments, and other forms of those that do not.
BY_HAND: Mapping[str, tuple[Any, ...]] = {
    "received_attention": (
        ReceivedAttention("patches", by_mass=True),
        ReceivedAttention(layer=-2),
        ReceivedAttention(stride=2),
    ),
    "cls_attention": (CLSAttention("max", layer="clip"),),
    "last_token_attention": (LastTokenAttention("max", layer=-2),),
    "feature_norm": (
        FeatureNorm("all_keys"),
        FeatureNorm("all_keys", power=1),
        length.normalized("rank") + 0.5 * length.normalized("zscore"),
    ),
    "diversity": (Diversity("x", k=1, tau=2.0),),
    "text_softmax": (TextSoftmax("clip", negated=False),),
    "graph_energy": (GraphEnergy("x", 0.3, "gaussian"), GraphEnergy("all_keys", fall=0.5)),
    "density_peak": (DensityPeak("keys", k=2), DensityPeak(k=0.3)),
    "raters": (Raters(1), Raters(2, unturned=True)),
    "graph_flow": (GraphFlow("keys", 0.2, 0.1, 2),),
    "value_weighted": (ValueWeighted("received"),),
    "negative_squared_distance": (NegativeSquaredDistance("all_keys"),),
    "text_relevance": (TextRelevance("clip", negated=False),),
    "similarity": (
        Similarity("keys", "exp", 2.0),
        Similarity("all_keys", "sigmoid"),
        cosine.nonnegative() * Diversity("x").discount(0.5),
    ),
    "alternate": (Alternate("even"),),
    "bipartite": (Bipartite(cosine, split=Parity(), order="tome"),),
    "by_depth": (
        ByDepth(SelectAssign(TopK(length), Nearest(cosine)), SelectAssign(TopK(length), Drop())),
        ByDepth(
            Bipartite(cosine), Bipartite(cosine, Halves(), Protect(length, 1.0), rank=length), 0.6
        ),
    ),
    "every": (Every(4),),
    "protect": (Protect(length, 0.4), Protect(length, 1.0, sticky=True)),
    "select_assign": (
        SelectAssign(TopK(length, rest="score"), Nearest(cosine), order="selected"),
        SelectAssign(TopK(length), Fuse()),
        SelectAssign(Outliers(length), Fuse(), order="selected"),
    ),
    "top_k": (TopK(length, rest="score"), TopK(length, rest="score", kept="position")),
    "among": (Among(TopK(DensityPeak(k=0.1)), 0.5), Among(TopK(length), 0.0)),
    "join_first": (JoinFirst(Nearest(cosine), 0.5), JoinFirst(Nearest(cosine, group=-1))),
    "strided": (Strided("floor"),),
    "then": (
        Then((0.5, TopK(length)), (2, MaxMin(cosine)), (REST, TopK(length, rest="score"))),
        Then((0.25, GridCentres()), (REST, Strided())),
    ),
    "max_min": (MaxMin(cosine),),
    "thin": (Thin(cosine), Thin(cosine, per_round=1)),
    "per_window": (PerWindow(length, 2), PerWindow(length, 2, "cap"), PerWindow(length, 64)),
    "whole_rows": (WholeRows(length),),
    "lattice": (Lattice(3),),
    "outliers": (Outliers(length), Outliers(length, spread=True)),
    "sampled": (Sampled(length), Sampled(length, fill=True), Sampled(length, match_reference=True)),
    "medoids": (
        Medoids(NegativeSquaredDistance(), length),
        Medoids(NegativeSquaredDistance(), length, 1, match_reference=True),
    ),
    "far_from_pivots": (
        FarFromPivots(length, pivots=2, text_pivots=3),
        FarFromPivots(FeatureNorm("all_keys", power=1), pivots=3),
    ),
    "greedy_dpp": (GreedyDPP(cosine, length.normalized()),),
    "nearest": (Nearest(cosine), Nearest(cosine, group=-1)),
    "fused": (Fused(length),),
    "neighbour_sum": (
        NeighbourSum(cosine, length, 2),
        NeighbourSum(Similarity("all_keys"), CLSAttention()),
    ),
    "geometric": (Geometric(()), Geometric((0, -1)), Geometric((0.5,))),
    "first": (First(1), First(4)),
    "last": (Last(1), Last(4)),
    "increasing": (Increasing(64), Increasing(0.5)),
    "decreasing": (Decreasing(2.5),),
    "skip": (Skip(0, 2), Skip(2, 3)),
    "once": (Once(0.5), Once(-1), Once(0), Once(keep=1.5), Once(keep=0.5)),
    "per_block": (PerBlock(8), PerBlock(5, -0.5)),
    "explicit": (Explicit(()), Explicit((16, 0, 8, 40))),
}

_select, _bipartite = SelectAssign(TopK(length), Drop()), Bipartite(cosine)

RECIPES: Mapping[str, Recipe] = {
    **{name: tokenzoo.build(name).recipe for name in tokenzoo.list_recipes()},
    "evoprune, otherwise": tokenzoo.build(
        "evoprune",
        by_mass=True,
        curve="sigmoid",
        tau=2.0,
        sticky=True,
        proposers="even",
        merger="mean",
    ).recipe,
}

# Recipes whose parts are among those above: only their plans are other ones.
PLANNED: Mapping[str, Recipe] = {
    "evoprune, flops": tokenzoo.build("evoprune", flops=0.7).recipe,
    "tome, r": tokenzoo.build("tome", r=3).recipe,
    "visionzip, counted": tokenzoo.build("visionzip", dominant=3).recipe,
    "two steps": Recipe(
        Step(Stage.BLOCK, Skip(), _bipartite, WeightedMean()),
        Step(Stage.LLM(4), Once(keep=0.5), _select, Identity()),
        keep=0.5,
    ),
}


def registered(*kinds: plugins.Kind) -> dict[str, tuple[Any, ...]]:
    """The instances of every registered part of some kinds, by name; empty where there is none."""
    found: dict[str, tuple[Any, ...]] = {}
    for kind in kinds:
        for name, factory in plugins.collect(kind).items():
            found[name] = (*_default(factory), *BY_HAND.get(name, ()))
    # A schedule may have the name of a merger.
    return found


def _default(factory: Any) -> tuple[Part, ...]:
    """The instance that needs no arguments, if there is one."""
    if required_of(factory):
        return ()
    try:
        return (factory(),)
    except BadArgumentError:  # it takes one or more, whatever they are called
        return ()


def cases(instances: Mapping[str, tuple[Any, ...]]) -> Iterator[Any]:
    """Each instance with every property that binds it; the first of each name on all examples."""
    for name, subjects in instances.items():
        for number, subject in enumerate(subjects):
            examples = EXAMPLES if number == 0 else max(8, EXAMPLES // 10)
            for prop in binding(subject):
                yield pytest.param(subject, prop, examples, id=f"{name}{number}-{prop}")


def binding(subject: object) -> list[str]:
    """The properties that bind a subject."""
    kind = kind_of(subject)
    return [name for name, prop in PROPERTIES.items() if kind in prop.binds]
