"""Counts that come from the data: plans with lengths, what pads has no mass, and what cannot go on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.matchers.sites import Given, draws
from tokenzoo import Evidence, Recipe, Selector, Stage, Step
from tokenzoo.matchers import Drop, Fuse, GreedyDPP, MaxMin, Outliers, Sampled, SelectAssign, TopK
from tokenzoo.matchers.outliers import quantile
from tokenzoo.mergers import Fused, Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import FeatureNorm, Similarity

N = 40
LENGTH, COSINE = FeatureNorm(), Similarity("x")


def scored(scores: Tensor) -> Tensor:
    """Tokens `[b, n, 3]` of these lengths."""
    x = draws(*scores.shape, 3)
    return x / x.norm(dim=-1, keepdim=True) * scores[..., None]


def skewed() -> Tensor:
    """Scores `[3, n]`; in image i, 2 + 3 i of them stand out."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(3, N, generator=generator, dtype=torch.float64)
    for i in range(3):
        scores[i, torch.randperm(N, generator=generator)[: 2 + 3 * i]] += 9 + i
    return scores


SCORES = skewed()
X = scored(SCORES)


def reduce(
    stay: Selector, x: Tensor, keep: int, *, order: Any = "position", join: Any = None
) -> Any:
    merger = Identity() if join is None else Fused()
    recipe = Recipe(
        Step(Stage.FEATURES, Once(), SelectAssign(stay, join or Drop(), order), merger), keep=keep
    )
    reduced = tokenzoo.build(recipe).reduce(x)
    reduced.plan.check()
    return reduced


def kept(stay: Selector, x: Tensor, keep: int, **options: Any) -> list[list[int]]:
    """What stays of each image, without what pads."""
    plan = reduce(stay, x, keep, **options).plan
    assert plan.lengths is not None
    return [row[:count] for row, count in zip(plan.keep.tolist(), plan.lengths, strict=True)]


def standing_out(scores: Tensor) -> list[int]:
    low, high = np.percentile(scores.numpy(), [25, 75])
    return [t for t in range(N) if float(scores[t]) > high + 1.5 * (high - low)]


def highest_first() -> Iterator[list[int]]:
    for scores in SCORES:
        yield sorted(standing_out(scores), key=lambda t: -float(scores[t]))


def test_as_many_stay_as_stand_out() -> None:
    reduced = reduce(Outliers(LENGTH), X, 20)
    for i, count in enumerate(reduced.plan.lengths.tolist()):
        wanted = standing_out(SCORES[i])
        assert count == len(wanted) == 2 + 3 * i
        assert reduced.plan.keep[i].tolist() == wanted + [-1] * (20 - count)
        assert torch.equal(reduced.x[i, :count], X[i, wanted])
        assert reduced.mass[i].tolist() == [1.0] * count + [0.0] * (20 - count)
        assert not bool(reduced.x[i, count:].any())


def test_the_others_are_fused_after_those_that_stay() -> None:
    reduced = reduce(Outliers(LENGTH), X, 20, join=Fuse(), order="selected")
    spread = reduced.unmerge(reduced.x)
    for i, wanted in enumerate(highest_first()):
        count = len(wanted)
        assert reduced.plan.lengths[i] == count + 1
        assert reduced.plan.keep[i].tolist() == wanted + [-1] * (20 - count)
        others = [t for t in range(N) if t not in wanted]
        torch.testing.assert_close(reduced.x[i, count], X[i, others].mean(0))
        assert reduced.mass[i].tolist() == [1] * count + [len(others)] + [0] * (19 - count)
        assert {int(slot) for slot in reduced.plan.dst[i, others]} == {count}
        assert torch.equal(spread[i, others], reduced.x[i, count].expand(len(others), -1))


def test_outliers_of_a_batch_depend_on_it() -> None:
    stay = Outliers(LENGTH, over="batch")
    together, alone = (reduce(stay, x, 20).plan.lengths for x in (X, X[:1]))
    assert together.unique().numel() == 1
    assert together[0] != alone[0]


def test_spread_outliers_add_every_so_many_but_the_last() -> None:
    wanted = []
    for out in highest_first():
        step = max(1, N // len(out) // 3)
        wanted.append(out + [t for t in range(0, N - 1, step) if t not in out])
    assert kept(Outliers(LENGTH, spread=True), X, N, order="selected") == wanted
    # One stands out: every 13th of 40 is added, and 39 would be one of them.
    scores = torch.ones(1, N, dtype=torch.float64)
    scores[0, 5] = 9
    assert kept(Outliers(LENGTH, spread=True), scored(scores), 20) == [[0, 5, 13, 26]]


def test_who_stands_out_is_above_a_border() -> None:
    scores = torch.linspace(1, 2, N, dtype=torch.float64)
    low, high = np.percentile(scores[: N - 2].numpy(), [25, 75])
    scores[N - 2 :] = torch.tensor([high + 1.4 * (high - low), high + 5 * (high - low)])
    assert standing_out(scores) == [N - 1]
    assert kept(Outliers(LENGTH), scored(scores[None]), 20) == [[N - 1]]


def test_never_more_than_were_asked_for_and_never_none() -> None:
    assert reduce(Outliers(LENGTH), X, 4).plan.lengths.tolist() == [2, 4, 4]
    assert reduce(Outliers(LENGTH), torch.ones(2, N, 3), 4).plan.lengths.tolist() == [1, 1]


@pytest.mark.parametrize(("match_reference", "marks"), [(False, 30), (True, 29)])
def test_sampling_keeps_what_the_marks_meet(match_reference: bool, marks: int) -> None:
    at = (2 * torch.arange(marks) + 1) / 60
    total = (SCORES / (SCORES.sum(-1, keepdim=True) + 1e-6)).cumsum(-1)
    met = [sorted({int((one - u).abs().argmin()) for u in at.tolist()}) for one in total]
    assert kept(Sampled(LENGTH, match_reference=match_reference), X, 30) == met
    filled = reduce(Sampled(LENGTH, fill=True), X, 30).plan
    assert filled.lengths is None
    assert bool((filled.keep >= 0).all())


def sampled(evidence: Evidence, k: int, match_reference: bool) -> set[int]:
    stay, pool = Sampled(Given(), match_reference=match_reference), torch.arange(N)[None]
    count = int(stay.lengths(evidence, pool, k)[0])  # pyright: ignore[reportOptionalSubscript]
    return set(stay.select(evidence, pool, k)[0][0, :count].tolist())


@pytest.mark.parametrize("match_reference", [False, True])
def test_what_pads_and_is_not_attended_to_is_met_by_no_mark(match_reference: bool) -> None:
    there = (torch.arange(N) < 25)[None].float()
    evidence = Evidence((SCORES[:1] * there)[..., None], mass=there)
    found = sampled(evidence, 10, match_reference)
    assert 1 < len(found) <= 10
    assert max(found) < 25


def test_faithful_marks_come_to_what_pads_where_it_has_scores() -> None:
    """0.1 more puts their sums beyond the last marks, which go to the last token that is there."""
    evidence = Evidence(torch.ones(1, N, 1), mass=(torch.arange(N) < 36)[None].float())
    assert max(sampled(evidence, 19, match_reference=False)) > 36
    assert max(sampled(evidence, 19, match_reference=True)) <= 36


def test_what_is_chosen_twice_or_beyond_the_rank_is_there_once() -> None:
    tenfold = scored(SCORES[:2] + 1)[:, torch.arange(N) // 4]  # ten, four times each
    assert reduce(MaxMin(COSINE), tenfold, 16).plan.lengths is None
    assert reduce(MaxMin(COSINE, repeats=True), tenfold, 16).plan.lengths.tolist() == [10, 10]
    # Four directions, ten times each, nothing rounded: the fifth gain is 0, and then all are NaN.
    four = torch.eye(4, dtype=torch.float64).repeat(10, 1)[None] * 2
    assert kept(GreedyDPP(COSINE, LENGTH, fails=True), four, 16) == [[0, 1, 2, 3, 4]]
    assert reduce(GreedyDPP(COSINE, LENGTH), four, 16).plan.lengths is None


@pytest.mark.parametrize(
    ("stay", "other"),
    [
        (MaxMin(COSINE), MaxMin(COSINE, repeats=True)),
        (GreedyDPP(COSINE, LENGTH), GreedyDPP(COSINE, LENGTH, fails=True)),
    ],
)
def test_within_the_rank_nothing_fails(stay: Selector, other: Selector) -> None:
    x = draws(2, N, 64)
    assert kept(other, x, 16) == reduce(stay, x, 16).plan.keep.tolist()


def test_where_nobody_goes_nobody_is_fused() -> None:
    assert torch.equal(reduce(TopK(LENGTH), X, N, join=Fuse()).x, X)
    assert reduce(TopK(LENGTH), X, N - 1, join=Fuse()).plan.keep[0, -1] == -1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_quantile_is_that_of_torch(dtype: torch.dtype) -> None:
    values = draws(6, 11).to(dtype)
    values[1, 3:5], values[2, :10], values[3], values[4, 0] = (torch.nan,) * 4
    for q in (0.0, 0.25, 0.5, 0.75, 1.0):
        expected = values.nanquantile(q, dim=-1)
        torch.testing.assert_close(quantile(values, q), expected, rtol=0, atol=0, equal_nan=True)
