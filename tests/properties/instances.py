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
from tokenzoo import Recipe, Stage, Step, mergers, plugins, schedules
from tokenzoo import matchers as m
from tokenzoo import scorers as s
from tokenzoo import temporal as t
from tokenzoo.errors import BadArgumentError
from tokenzoo.parts import Part
from tokenzoo.testing import PROPERTIES
from tokenzoo.testing.subjects import kind_of, required_of

# Few examples in every run; under HYPOTHESIS_PROFILE=thorough as many as that profile says.
EXAMPLES = max(8, settings.default.max_examples if settings.default.max_examples > 100 else 0)

cosine, length = s.Similarity("x"), s.FeatureNorm()

# By registered name: parts that take arguments, and other forms of those that do not.
BY_HAND: Mapping[str, tuple[Any, ...]] = {
    "received_attention": (
        s.ReceivedAttention("patches", by_mass=True),
        s.ReceivedAttention(layer=-2),
        s.ReceivedAttention(stride=2),
    ),
    "cls_attention": (s.CLSAttention("max", layer="clip"),),
    "last_token_attention": (s.LastTokenAttention("max", layer=-2),),
    "feature_change": (s.FeatureChange(until="clip"),),
    "neighbour_update": (
        mergers.NeighbourUpdate(s.NegativeSquaredDistance("x"), 2),
        mergers.NeighbourUpdate(cosine),
    ),
    "feature_norm": (
        s.FeatureNorm("all_keys"),
        s.FeatureNorm("all_keys", power=1),
        length.normalized("rank") + 0.5 * length.normalized("zscore"),
    ),
    "diversity": (s.Diversity("x", k=1, tau=2.0),),
    "text_softmax": (s.TextSoftmax("clip", negated=False),),
    "graph_energy": (s.GraphEnergy("x", 0.3, "gaussian"), s.GraphEnergy("all_keys", fall=0.5)),
    "density_peak": (s.DensityPeak("keys", k=2), s.DensityPeak(k=0.3)),
    "raters": (s.Raters(1), s.Raters(2, unturned=True)),
    "graph_flow": (s.GraphFlow("keys", 0.2, 0.1, 2),),
    "value_weighted": (s.ValueWeighted("received"),),
    "negative_squared_distance": (s.NegativeSquaredDistance("all_keys"),),
    "text_relevance": (s.TextRelevance("clip", negated=False),),
    "similarity": (
        s.Similarity("keys", "exp", 2.0),
        s.Similarity("all_keys", "sigmoid"),
        cosine.nonnegative() * s.Diversity("x").discount(0.5),
    ),
    "alternate": (m.Alternate("even"),),
    "bipartite": (m.Bipartite(cosine, split=m.Parity(), order="tome"),),
    "by_depth": (
        m.ByDepth(
            m.SelectAssign(m.TopK(length), m.Nearest(cosine)),
            m.SelectAssign(m.TopK(length), m.Drop()),
        ),
        m.ByDepth(
            m.Bipartite(cosine),
            m.Bipartite(cosine, m.Halves(), m.Protect(length, 1.0), rank=length),
            0.6,
        ),
    ),
    "every": (m.Every(4),),
    "protect": (m.Protect(length, 0.4), m.Protect(length, 1.0, sticky=True)),
    "select_assign": (
        m.SelectAssign(m.TopK(length, rest="score"), m.Nearest(cosine), order="selected"),
        m.SelectAssign(m.TopK(length), m.Fuse()),
        m.SelectAssign(m.Outliers(length), m.Fuse(), order="selected"),
    ),
    "top_k": (m.TopK(length, rest="score"), m.TopK(length, rest="score", kept="position")),
    "among": (m.Among(m.TopK(s.DensityPeak(k=0.1)), 0.5), m.Among(m.TopK(length), 0.0)),
    "join_first": (m.JoinFirst(m.Nearest(cosine), 0.5), m.JoinFirst(m.Nearest(cosine, group=-1))),
    "strided": (m.Strided("floor"),),
    "then": (
        m.Then(
            (0.5, m.TopK(length)), (2, m.MaxMin(cosine)), (m.REST, m.TopK(length, rest="score"))
        ),
        m.Then((0.25, m.GridCentres()), (m.REST, m.Strided())),
    ),
    "max_min": (m.MaxMin(cosine),),
    "max_coverage": (
        m.MaxCoverage(cosine, length),
        m.MaxCoverage(cosine, temperature=0.2, text=2.0, text_temperature=0.1),
        m.MaxCoverage(s.Similarity("keys", "exp", 2.0), s.CLSAttention(), 0.5),
    ),
    "marginal_relevance": (
        m.MarginalRelevance(length.normalized(), cosine),
        m.MarginalRelevance(s.CLSAttention(), s.Similarity("keys"), 0.9),
    ),
    "run_quotas": (m.RunQuotas(length, 3), m.RunQuotas(length, power=4.0)),
    "anchored": (m.Anchored(s.Random(), length, 0.8), m.Anchored(length, s.Random())),
    "distinct_per_group": (
        m.DistinctPerGroup(length, cosine),
        m.DistinctPerGroup(s.CLSAttention(), cosine, 1.0, 0.0),
    ),
    "elbow": (m.Elbow(length),),
    "thin": (m.Thin(cosine), m.Thin(cosine, per_round=1)),
    "per_window": (m.PerWindow(length, 2), m.PerWindow(length, 2, "cap"), m.PerWindow(length, 64)),
    "whole_rows": (m.WholeRows(length),),
    "lattice": (m.Lattice(3),),
    "outliers": (m.Outliers(length), m.Outliers(length, spread=True)),
    "sampled": (
        m.Sampled(length),
        m.Sampled(length, fill=True),
        m.Sampled(length, match_reference=True),
    ),
    "medoids": (
        m.Medoids(s.NegativeSquaredDistance(), length),
        m.Medoids(s.NegativeSquaredDistance(), length, 1, match_reference=True),
    ),
    "far_from_pivots": (
        m.FarFromPivots(length, pivots=2, text_pivots=3),
        m.FarFromPivots(s.FeatureNorm("all_keys", power=1), pivots=3),
    ),
    "greedy_dpp": (m.GreedyDPP(cosine, length.normalized()),),
    "scene_cuts": (t.SceneCuts(2, 0.0), t.SceneCuts(1, -1.0, "frame")),
    "static_windows": (t.StaticWindows(0.0), t.StaticWindows(-0.5, 2)),
    "density_runs": (t.DensityRuns(0.6, 2),),
    "frame_windows": (t.FrameWindows(2),),
    "static_dynamic": (
        m.StaticDynamic(t.FrameWindows(2), 0.0, "pairs", centres="score"),
        m.StaticDynamic(t.StaticWindows(0.0), 0.0, dynamic=length, k_of_centres=True),
        m.StaticDynamic(t.FrameWindows(3), -0.5, retained=0.4, order="position"),
        m.StaticDynamic(t.FrameWindows(3), -0.5, "pairs", retained=0.4, counting="set"),
    ),
    "salient_anchors": (
        m.SalientAnchors(length, t.FrameWindows(3), every=2),
        m.SalientAnchors(length, t.FrameWindows(3), 0.8, 2, retained=0.5),
    ),
    "tree_merge": (m.TreeMerge(length, t.FrameWindows(3), 0.4, 0.0, 2),),
    "into_frames": (m.IntoFrames(2),),
    "per_frame": (m.PerFrame(length), m.PerFrame(length, s.ClipUniqueness("clip"), 0.5)),
    "above": (m.Above(length, 1.0), m.Above(s.TemporalChange(), 0.8)),
    "temporal_change": (s.TemporalChange("first", t.FrameWindows(2)),),
    "frame_uniqueness": (s.FrameUniqueness(t.FrameWindows(2), "clip"),),
    "clip_uniqueness": (s.ClipUniqueness("clip", 1.0), s.ClipUniqueness("frame", 0.0)),
    "anchor_blend": (
        mergers.AnchorBlend(t.FrameWindows(3), 2),
        mergers.AnchorBlend(t.FrameWindows(3), 2, 0.2, retained=0.5),
    ),
    "nearest": (m.Nearest(cosine), m.Nearest(cosine, group=-1)),
    "fused": (mergers.Fused(length),),
    "soft_sum": (mergers.SoftSum(m.Slimming()), mergers.SoftSum(m.TransportCentres())),
    "straight_through": (mergers.StraightThrough(s.KeepGate()),),
    "patch_queries": (m.PatchQueries(1, scaled=True, normed_values=True),),
    "transport_centres": (m.TransportCentres(temperature=0.3, rounds=1, unit_values=True),),
    "slimming": (m.Slimming(1, hidden=2.0),),
    "neighbour_sum": (
        mergers.NeighbourSum(cosine, length, 2),
        mergers.NeighbourSum(s.Similarity("all_keys"), s.CLSAttention()),
    ),
    "geometric": (
        schedules.Geometric(()),
        schedules.Geometric((0, -1)),
        schedules.Geometric((0.5,)),
    ),
    "first": (schedules.First(1), schedules.First(4)),
    "last": (schedules.Last(1), schedules.Last(4)),
    "increasing": (schedules.Increasing(64), schedules.Increasing(0.5)),
    "decreasing": (schedules.Decreasing(2.5),),
    "skip": (schedules.Skip(0, 2), schedules.Skip(2, 3)),
    "once": (
        schedules.Once(0.5),
        schedules.Once(-1),
        schedules.Once(0),
        schedules.Once(keep=1.5),
        schedules.Once(keep=0.5),
    ),
    "per_block": (schedules.PerBlock(8), schedules.PerBlock(5, -0.5)),
    "share": (schedules.Share(0.2), schedules.Share(1.0)),
    "merge_windows": (m.MergeWindows(2),),
    "text_attention": (s.TextAttention("mean", "sum"),),
    "scaled": (
        schedules.Scaled(schedules.Skip(0, 2), 2.0),
        schedules.Scaled(schedules.Once(), 0.5),
    ),
    "neighbour_pairs": (m.NeighbourPairs(0.5), m.NeighbourPairs(0.9, 3, 0.5)),
    "ends_and_middles": (m.EndsAndMiddles(length, t.StreamingCuts(0.5, 3)),),
    "streaming_cuts": (t.StreamingCuts(0.0, 3, 0.5),),
    "explicit": (schedules.Explicit(()), schedules.Explicit((16, 0, 8, 40))),
}

_select, _bipartite = m.SelectAssign(m.TopK(length), m.Drop()), m.Bipartite(cosine)

RECIPES: Mapping[str, Recipe] = {
    **{name: tokenzoo.build(name).recipe for name in tokenzoo.list_recipes()},
    "longvu, frames": tokenzoo.build("longvu", of="frames").recipe,
    "holitom, ragged": tokenzoo.build("holitom", retained=0.3, blend=None).recipe,
    "fastvid, ragged": tokenzoo.build("fastvid", retained=0.5).recipe,
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
        Step(Stage.BLOCK, schedules.Skip(), _bipartite, mergers.WeightedMean()),
        Step(Stage.LLM(4), schedules.Once(keep=0.5), _select, mergers.Identity()),
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
    """Each instance with every property that binds it; the first of each name on all examples.

    The others differ from it in a branch or two: a few examples reach it.
    """
    for name, subjects in instances.items():
        for number, subject in enumerate(subjects):
            examples = EXAMPLES if number == 0 else max(4, EXAMPLES // 10)
            for prop in binding(subject):
                yield pytest.param(subject, prop, examples, id=f"{name}{number}-{prop}")


def binding(subject: object) -> list[str]:
    """The properties that bind a subject."""
    kind = kind_of(subject)
    return [name for name, prop in PROPERTIES.items() if kind in prop.binds]
