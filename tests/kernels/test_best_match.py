"""The best match in blocks is that of the whole matrix, with ties to the lower index and NaN last."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from torch import Tensor

from tests.compiling import clean_compiler as clean_compiler
from tests.kernels.drawing import draws
from tests.watching import Watch
from tokenzoo import Affinity
from tokenzoo.affinity import Elementwise
from tokenzoo.kernels.best_match import CACHED, best_match, blocks

# Images of one block, of several images each, and of several blocks each.
SIZES = [(2, 9, 7), (90, 60, 70), (2, 700, 600)]
WORST = torch.finfo(torch.float64).min


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_blocks_find_the_maximum_of_all(
    size: tuple[int, int, int], scaled: bool, shifted: bool
) -> None:
    """And its gradients are those of the maximum."""
    b, a, p = size
    inputs = [draws(0, b, a, 5), draws(1, b, p, 5)]
    left, right = inputs
    scores = left.requires_grad_() @ right.requires_grad_().mT
    weights: dict[str, Tensor] = {}
    if scaled:
        weights["scale"] = draws(2, b, p).exp()
        scores = scores * weights["scale"][:, None]
    if shifted:
        weights["shift"] = draws(3, b, p).requires_grad_()
        inputs.append(weights["shift"])
        scores = scores + weights["shift"][:, None]
    expected = scores.max(-1)
    value, index = best_match(left, right, **weights)
    torch.testing.assert_close(value, expected.values, rtol=1e-12, atol=1e-12)
    assert torch.equal(index, expected.indices)
    found = torch.autograd.grad(value.square().sum(), inputs)
    wanted = torch.autograd.grad(scores.amax(-1).square().sum(), inputs)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_ties_go_to_the_lower_index(size: tuple[int, int, int]) -> None:
    b, a, p = size
    right = torch.ones(b, p, 3)
    right[:, :4] = -1
    value, index = best_match(torch.ones(b, a, 3), right)
    assert bool((index == 4).all())
    assert bool((value == 3).all())


@pytest.mark.parametrize("size", SIZES)
def test_nan_loses_and_infinities_are_numbers(size: tuple[int, int, int]) -> None:
    b, a, p = size
    left, right = draws(4, b, a, 3).abs(), draws(5, b, p, 3).abs()
    left[:, -1] = math.nan
    right[:, 0] = math.nan
    value, index = best_match(left, right)
    assert bool((value[:, -1] == WORST).all())
    assert bool((index[:, -1] == 0).all())
    assert bool((index[:, :-1] > 0).all())
    right[:, 2] = math.inf
    value, index = best_match(left, right)
    assert bool((index[:, :-1] == 2).all())
    assert bool((value[:, :-1] == -WORST).all())


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 99))
@settings(max_examples=60)
def test_blocks_are_everything_once(count: int, each: int, most: int) -> None:
    items = list(range(count))
    parts = [items[block] for block in blocks(count, each, most)]
    assert [item for part in parts for item in part] == items
    assert all(len(part) * each <= most or len(part) == 1 for part in parts)


def test_half_precision_is_computed_in_float32() -> None:
    left, right = draws(6, 2, 9, 8).bfloat16(), draws(7, 2, 7, 8).bfloat16()
    value, index = best_match(left, right)
    expected = best_match(left.float(), right.float())
    assert value.dtype == torch.float32
    assert torch.equal(value, expected[0])
    assert torch.equal(index, expected[1])


@pytest.mark.parametrize("way", ["folded", "dense"])
def test_the_matrix_is_never_stored_and_the_host_never_waits(way: str) -> None:
    weight = torch.ones(1, 3000)
    curve = None if way == "folded" else Elementwise(torch.sigmoid)
    affinity = Affinity(torch.ones(1, 2500, 2), torch.ones(1, 3000, 2), None, weight, curve)
    with Watch(strict=True) as watch:
        affinity.best()
    assert watch.largest <= CACHED  # of 7.5 million scores
    with Watch(strict=True) as watch:
        affinity.nearest(3)
    assert watch.largest <= CACHED


@pytest.mark.parametrize("way", ["best", "nearest"])
def test_scores_without_a_folded_form_are_those_of_dense_block_by_block(way: str) -> None:
    left, right = draws(8, 2, 700, 4), draws(9, 2, 600, 4)
    source, target = draws(10, 2, 700).exp(), draws(11, 2, 600).exp()
    affinity = Affinity(left, right, source, target, Elementwise(torch.sigmoid))
    expected = affinity.dense().sort(dim=-1, descending=True, stable=True)
    value, index = affinity.best() if way == "best" else affinity.nearest(3)
    own = 0 if way == "best" else slice(3)
    torch.testing.assert_close(value, expected.values[..., own], rtol=1e-12, atol=1e-12)
    assert torch.equal(index, expected.indices[..., own])


class Best(torch.nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return best_match(left, right, scale=right.abs().sum(-1))


@pytest.mark.skipif(
    Version(torch.__version__) >= Version("2.14") or shutil.which("c++") is None,
    reason="torch 2.14 finds the right index, and compiled code needs a C++ compiler",
)
@pytest.mark.usefixtures("clean_compiler")
def test_compiled_code_finds_the_same_partners() -> None:
    # Before 2.14, the index of a maximum that torch fuses with a strided operand is another one.
    left, right, scale = draws(17, 2, 32, 4), draws(18, 2, 32, 4), draws(19, 2, 64).abs()

    def partners(scale: Tensor) -> Tensor:
        return best_match(left, right, scale=scale[:, 1::2])[1]

    with torch.no_grad():
        assert torch.equal(torch.compile(partners)(scale), partners(scale))


@pytest.mark.usefixtures("clean_compiler")
def test_compiled_and_exported() -> None:
    left, right = draws(15, 2, 9, 4), draws(16, 2, 7, 4)
    value, index = Best()(left, right)
    compiled = torch.compile(Best(), fullgraph=True, backend="aot_eager")(left, right)
    torch.testing.assert_close(compiled[0], value)
    assert torch.equal(compiled[1], index)
    batch = torch.export.Dim("batch", min=2, max=9)
    shapes = ({0: batch}, {0: batch})
    program = torch.export.export(Best(), (left, right), dynamic_shapes=shapes).module()
    twice = program(left.repeat(2, 1, 1), right.repeat(2, 1, 1))
    torch.testing.assert_close(twice[0], value.repeat(2, 1))
    assert torch.equal(twice[1], index.repeat(2, 1))
