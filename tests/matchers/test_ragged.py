"""Counts that come from the data: plans with lengths, what pads has no mass, and what cannot go on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import tokenzoo
from tokenzoo import Evidence, Recipe, Stage, Step
from tokenzoo.errors import BadArgumentError
from tokenzoo.matchers import (
    Drop,
    Fuse,
    GreedyDPP,
    MaxMin,
    Nearest,
    Outliers,
    Sampled,
    SelectAssign,
    TopK,
)
from tokenzoo.matchers.outliers import quantile
from tokenzoo.mergers import Fused, Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import FeatureNorm, Similarity

N = 40


def scored(scores: Tensor) -> Tensor:
    """Tokens `[b, n, 3]` of these lengths."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*scores.shape, 3, generator=generator, dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True) * scores[..., None]


def skewed(b: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(b, N, generator=generator, dtype=torch.float64)
    for i in range(b):
        scores[i, torch.randperm(N, generator=generator)[: 2 + 3 * i]] += 9 + i
    return scores


def reduce(stay, x: Tensor, keep: int, *, join=None, order="position", **shown):
    merger = Identity() if join is None else Fused()
    match = SelectAssign(stay, join or Drop(), order)
    recipe = Recipe(Step(Stage.FEATURES, Once(), match, merger), keep=keep)
    reduced = tokenzoo.build(recipe).reduce(x, **shown)
    reduced.plan.check()
    return reduced


def standing_out(scores: Tensor) -> list[int]:
    low, high = np.percentile(scores.numpy(), [25, 75])
    return [t for t in range(N) if float(scores[t]) > high + 1.5 * (high - low)]


def test_as_many_stay_as_stand_out() -> None:
    scores = skewed()
    x = scored(scores)
    reduced = reduce(Outliers(FeatureNorm()), x, 20)
    assert reduced.x.shape == (3, 20, 3)
    for i, count in enumerate(reduced.plan.lengths.tolist()):
        wanted = standing_out(scores[i])
        assert count == len(wanted) == 2 + 3 * i
        assert reduced.plan.keep[i].tolist() == wanted + [-1] * (20 - count)
        assert torch.equal(reduced.x[i, :count], x[i, wanted])
        assert reduced.mass[i].tolist() == [1.0] * count + [0.0] * (20 - count)
        assert not bool(reduced.x[i, count:].any())
    # An image alone is what it is in the batch.
    alone = reduce(Outliers(FeatureNorm()), x[1:2], 20)
    assert torch.equal(alone.plan.keep[0], reduced.plan.keep[1])


def test_the_others_are_fused_after_those_that_stay() -> None:
    scores = skewed()
    x = scored(scores)
    reduced = reduce(Outliers(FeatureNorm()), x, 20, join=Fuse(), order="selected")
    for i in range(3):
        kept = sorted(standing_out(scores[i]), key=lambda t: -float(scores[i, t]))
        count = len(kept) + 1
        assert reduced.plan.lengths[i] == count
        assert reduced.plan.keep[i].tolist() == kept + [-1] * (20 - len(kept))
        others = [t for t in range(N) if t not in kept]
        torch.testing.assert_close(reduced.x[i, count - 1], x[i, others].mean(0))
        assert reduced.mass[i, count - 1] == len(others)
        assert not bool(reduced.mass[i, count:].any())
        assert {int(slot) for slot in reduced.plan.dst[i, others]} == {count - 1}
        spread = reduced.unmerge(reduced.x)[i]
        torch.testing.assert_close(spread[others], x[i, others].mean(0).expand(len(others), -1))


def test_outliers_of_a_batch_depend_on_it() -> None:
    x = scored(skewed())
    stay = Outliers(FeatureNorm(), over="batch")
    together = reduce(stay, x, 20).plan.lengths
    assert together.unique().numel() == 1
    assert together[0] != reduce(stay, x[:1], 20).plan.lengths[0]


def test_spread_outliers_add_every_so_many() -> None:
    scores = skewed()
    reduced = reduce(Outliers(FeatureNorm(), spread=True), scored(scores), N, order="selected")
    for i in range(3):
        kept = sorted(standing_out(scores[i]), key=lambda t: -float(scores[i, t]))
        step = max(1, N // len(kept) // 3)
        kept += [t for t in range(0, N - 1, step) if t not in kept]
        assert reduced.plan.keep[i, : reduced.plan.lengths[i]].tolist() == kept


def test_the_border_and_the_last_place() -> None:
    scores = torch.linspace(1, 2, N, dtype=torch.float64)
    low, high = np.percentile(scores[: N - 2].numpy(), [25, 75])
    scores[N - 2 :] = torch.tensor([high + 1.4 * (high - low), high + 5 * (high - low)])
    assert standing_out(scores) == [N - 1]
    reduced = reduce(Outliers(FeatureNorm()), scored(scores[None]), 20)
    assert reduced.plan.keep[0, : reduced.plan.lengths[0]].tolist() == [N - 1]
    # One stands out: every 13th of 40 is added, and 39 would be one of them.
    scores = torch.ones(1, N, dtype=torch.float64)
    scores[0, 5] = 9
    reduced = reduce(Outliers(FeatureNorm(), spread=True), scored(scores), 20)
    assert reduced.plan.keep[0, : reduced.plan.lengths[0]].tolist() == [0, 5, 13, 26]


def test_never_more_than_were_asked_for_and_never_none() -> None:
    x = scored(skewed())
    assert reduce(Outliers(FeatureNorm()), x, 4).plan.lengths.tolist() == [2, 4, 4]
    flat = reduce(Outliers(FeatureNorm()), torch.ones(2, N, 3), 4)
    assert flat.plan.lengths.tolist() == [1, 1]


def test_sampling_keeps_what_the_marks_meet() -> None:
    scores = skewed()
    x = scored(scores)
    for match_reference, marks in ((False, 30), (True, 29)):
        reduced = reduce(Sampled(FeatureNorm(), match_reference=match_reference), x, 30)
        for i in range(3):
            total = (scores[i] / (scores[i].sum() + 1e-6)).cumsum(0)
            at = (2 * torch.arange(marks) + 1) / 60
            met = sorted({int((total - u).abs().argmin()) for u in at.tolist()})
            assert reduced.plan.keep[i, : reduced.plan.lengths[i]].tolist() == met
    filled = reduce(Sampled(FeatureNorm(), fill=True), x, 30)
    assert filled.plan.lengths is None
    assert bool((filled.plan.keep >= 0).all())


@pytest.mark.parametrize("match_reference", [False, True])
def test_what_pads_and_is_not_attended_to_is_met_by_no_mark(match_reference: bool) -> None:
    evidence = Evidence(scored(skewed(1)), mass=(torch.arange(N) < 25)[None].float())
    pool, stay = torch.arange(N)[None], Sampled(_Zeroed(25), match_reference=match_reference)
    kept, _ = stay.select(evidence, pool, 10)
    count = int(stay.lengths(evidence, pool, 10)[0])
    assert 1 < count <= 10
    assert bool((kept[0, :count] < 25).all())


def test_faithful_marks_come_to_what_pads_where_it_has_scores() -> None:
    x = scored(torch.ones(1, N, dtype=torch.float64))
    evidence = Evidence(x, mass=(torch.arange(N) < 36)[None].float())
    pool = torch.arange(N)[None]
    kept = {}
    for match_reference in (False, True):
        stay = Sampled(FeatureNorm(), match_reference=match_reference)
        count = int(stay.lengths(evidence, pool, 19)[0])
        kept[match_reference] = set(stay.select(evidence, pool, 19)[0][0, :count].tolist())
    # 0.1 more puts their sums beyond the last marks, which then go to the last token that is there.
    assert any(t >= 36 for t in kept[False])
    assert not any(t > 36 for t in kept[True])


class _Zeroed(FeatureNorm):
    """Lengths, 0 from some token on: what pads is not attended to."""

    def __init__(self, end: int) -> None:
        super().__init__()
        object.__setattr__(self, "end", end)

    def score(self, evidence: Evidence) -> Tensor:
        scores = super().score(evidence)
        return scores.where(torch.arange(scores.shape[1]) < self.end, 0)


def test_what_the_caller_protects_stays_in_addition() -> None:
    x = scored(skewed())
    protected = torch.zeros(3, N, dtype=torch.bool)
    protected[:, [0, 17]] = True
    reduced = reduce(Outliers(FeatureNorm()), x, 20, join=Fuse(), protected=protected)
    for i in range(3):
        count = int(reduced.plan.lengths[i])
        assert {0, 17} <= set(reduced.plan.keep[i, : count - 1].tolist())
        assert bool((reduced.mass[i, :count] > 0).all())
        assert not bool(reduced.mass[i, count:].any())
        assert reduced.mass[i].sum() == N


def test_what_they_choose_twice_is_there_once() -> None:
    x = scored(torch.rand(2, N, dtype=torch.float64) + 1)[
        :, torch.arange(N) // 4
    ]  # ten, four times each
    once = reduce(MaxMin(Similarity("x")), x, 16)
    twice = reduce(MaxMin(Similarity("x"), repeats=True), x, 16)
    assert once.plan.lengths is None
    assert twice.plan.lengths.tolist() == [10, 10]


def test_beyond_the_rank_fewer_stay() -> None:
    """Four directions, ten times each, nothing rounded: the fifth gain is 0, and then all are NaN."""
    x = torch.eye(4, dtype=torch.float64).repeat(10, 1)[None] * 2
    dpp = GreedyDPP(Similarity("x"), FeatureNorm(), fails=True)
    reduced = reduce(dpp, x, 16)
    assert reduced.plan.lengths.tolist() == [5]
    assert reduced.plan.keep[0].tolist() == [0, 1, 2, 3, 4] + [-1] * 11
    assert reduce(GreedyDPP(Similarity("x"), FeatureNorm()), x, 16).plan.lengths is None


def test_within_the_rank_nothing_fails() -> None:
    x = torch.randn(2, N, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for stay, other in (
        (MaxMin(Similarity("x")), MaxMin(Similarity("x"), repeats=True)),
        (
            GreedyDPP(Similarity("x"), FeatureNorm()),
            GreedyDPP(Similarity("x"), FeatureNorm(), fails=True),
        ),
    ):
        ours, theirs = reduce(stay, x, 16), reduce(other, x, 16)
        assert theirs.plan.lengths.tolist() == [16, 16]
        assert torch.equal(ours.plan.keep, theirs.plan.keep)


def test_others_cannot_join_what_may_not_be_there() -> None:
    with pytest.raises(BadArgumentError, match=r"Nearest.*Drop\(\) or Fuse\(\)"):
        SelectAssign(Outliers(FeatureNorm()), Nearest(Similarity("x")))


def test_where_nobody_goes_nobody_is_fused() -> None:
    x = scored(skewed())
    reduced = reduce(TopK(FeatureNorm()), x, N, join=Fuse())
    assert torch.equal(reduced.x, x)
    assert reduced.plan.lengths is None
    assert reduce(TopK(FeatureNorm()), x, N - 1, join=Fuse()).plan.keep[0, -1] == -1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_quantile_is_that_of_torch(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 11, dtype=dtype, generator=generator)
    values[1, 3:5], values[2, :10], values[3], values[4, 0] = (torch.nan,) * 4
    for q in (0.0, 0.25, 0.5, 0.75, 1.0):
        expected = values.nanquantile(q, dim=-1)
        torch.testing.assert_close(quantile(values, q), expected, rtol=0, atol=0, equal_nan=True)
