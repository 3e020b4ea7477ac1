"""The nearest in Triton against float64: on CUDA, or interpreted."""

from __future__ import annotations

import math

import pytest
import torch

from tests.kernels.interpreting import DEVICE, HALF, draws, runs
from tokenzoo.kernels import neighbour_density
from tokenzoo.kernels.choice import forced
from tokenzoo.kernels.neighbour_density import nearest_squares


def both(features: torch.Tensor, k: int) -> list[torch.Tensor]:
    """The squared distances, ascending, of the Triton form, and of the plain one in float64."""
    with forced("triton"):
        found, _ = nearest_squares(features, k)
    expected, _ = nearest_squares(features.double(), k)
    assert found.dtype == torch.float32
    return [found.double().sort(-1).values, expected.sort(-1).values]


@runs
@pytest.mark.parametrize(
    ("dtype", "n", "d", "k"),
    [
        *((torch.float32, *size) for size in ((2, 3, 1), (9, 5, 8), (70, 72, 5), (130, 200, 3))),
        *((dtype, 70, 72, 5) for dtype in HALF),
    ],
    ids=str,
)
def test_the_nearest(dtype: torch.dtype, n: int, d: int, k: int) -> None:
    features = draws(0, 2, n, d).to(dtype)
    found, expected = both(features, k)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * d)


@runs
@pytest.mark.parametrize("tau", [None, 9.0])
def test_the_density(tau: float | None) -> None:
    features = draws(1, 2, 70, 40)
    with forced("triton"):
        found = neighbour_density(features, 5, tau)
    expected = neighbour_density(features.double(), 5, tau)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@runs
def test_strides_as_they_come() -> None:
    features = draws(2, 40, 70, 2).permute(2, 1, 0)[:, ::2]
    found, expected = both(features, 4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@runs
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bad_tokens_are_nobodys_neighbour(value: float) -> None:
    features = draws(3, 2, 70, 8)
    features[:, [0, 66]] = value
    found, expected = both(features, 5)
    assert bool((found[:, [0, 66]] == math.inf).all())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@runs
def test_equal_tokens_are_each_others_neighbours() -> None:
    features = torch.ones(1, 70, 8, device=DEVICE)
    found, _ = both(features, 5)
    assert bool((found == 0).all())


@runs
def test_more_neighbours_than_the_kernel_holds() -> None:
    found, expected = both(draws(4, 1, 70, 8), 40)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@runs
def test_compiled() -> None:
    features = draws(5, 2, 70, 8)
    with forced("triton"), torch.no_grad():
        compiled = torch.compile(neighbour_density, fullgraph=True, backend="aot_eager")
        found = compiled(features, 5, None)
    expected = neighbour_density(features.double(), 5, None)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
