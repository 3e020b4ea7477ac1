"""The best match in Triton against float64: on CUDA, or interpreted."""

from __future__ import annotations

import math

import pytest
import torch

from tests.kernels.interpreting import DEVICE, HALF, draws, runs
from tokenzoo.kernels.best_match import best_match
from tokenzoo.kernels.choice import forced

LARGEST = torch.finfo(torch.float32).max

Weight = torch.Tensor | None


def in_triton(
    left: torch.Tensor, right: torch.Tensor, scale: Weight = None, shift: Weight = None
) -> tuple[torch.Tensor, torch.Tensor]:
    with forced("triton"):
        value, index = best_match(left, right, scale=scale, shift=shift)
    assert (value.dtype, index.dtype) == (torch.float32, torch.int64)
    return value, index


@runs
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("dtype", "a", "p", "d"),
    [
        *((torch.float32, *size) for size in ((1, 1, 3), (9, 70, 5), (130, 9, 72), (70, 130, 200))),
        *((dtype, 70, 130, 72) for dtype in HALF),
    ],
    ids=str,
)
def test_the_maximum(weighted: bool, dtype: torch.dtype, a: int, p: int, d: int) -> None:
    left, right = draws(0, 2, a, d).to(dtype), draws(1, 2, p, d).to(dtype)
    weights: tuple[Weight, Weight] = (None, None)
    if weighted:
        weights = draws(2, 2, p).exp(), draws(3, 2, p)
    value, index = in_triton(left, right, *weights)
    scores = left.double() @ right.double().mT
    if weighted:
        scores = scores * weights[0][:, None] + weights[1][:, None]
    close = {"rtol": 1e-5, "atol": 1e-5 * d**0.5}
    torch.testing.assert_close(value.double(), scores.amax(-1), **close)
    chosen = scores.gather(-1, index[..., None])[..., 0]
    torch.testing.assert_close(chosen, scores.amax(-1), **close)


@runs
def test_ties_go_to_the_lower_index_within_a_block_and_beyond() -> None:
    right = -torch.ones(1, 200, 4, device=DEVICE)
    right[:, 70::3] = 1
    value, index = in_triton(torch.ones(1, 3, 4, device=DEVICE), right)
    assert bool((index == 70).all())
    assert bool((value == 4).all())


@runs
def test_nan_loses_and_infinities_are_numbers() -> None:
    left, right = draws(4, 1, 9, 3).abs(), draws(5, 1, 70, 3).abs()
    left[:, 8] = math.nan
    right[:, 0] = math.nan
    value, index = in_triton(left, right)
    assert (value[0, 8], index[0, 8]) == (-LARGEST, 0)
    assert bool((index[:, :8] > 0).all())
    right[:, 66] = math.inf
    value, index = in_triton(left, right)
    assert bool((index[:, :8] == 66).all())
    assert bool((value[:, :8] == LARGEST).all())


@runs
def test_the_lowest_scores_there_are_stand_above_no_target_at_all() -> None:
    right = torch.full((1, 3, 4), math.nan, device=DEVICE)
    value, index = in_triton(torch.ones(1, 2, 4, device=DEVICE), right)
    assert value.tolist() == [[-LARGEST] * 2]
    assert index.tolist() == [[0, 0]]


@runs
def test_strides_and_types_as_they_come() -> None:
    left = draws(6, 40, 70, 2).permute(2, 1, 0)[:, ::2]
    right = draws(7, 2, 40, 30).to(torch.bfloat16).mT
    scale = draws(8, 30, 2).exp().T
    value, index = in_triton(left, right, scale)
    expected = (left.double() @ right.double().mT * scale[:, None]).max(-1)
    torch.testing.assert_close(value.double(), expected.values, rtol=1e-5, atol=1e-4)
    assert torch.equal(index, expected.indices)


@runs
def test_compiled() -> None:
    left, right = draws(9, 2, 9, 8), draws(10, 2, 7, 8)
    with forced("triton"):
        compiled = torch.compile(best_match, fullgraph=True, backend="aot_eager")
        value, index = compiled(left, right)
    expected = (left @ right.mT).max(-1)
    torch.testing.assert_close(value, expected.values)
    assert torch.equal(index, expected.indices)
