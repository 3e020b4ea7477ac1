"""All forms of the neighbour density give what the formula gives, written out in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.compiling import clean_compiler as clean_compiler
from tests.kernels.drawing import draws
from tests.watching import Watch
from tokenzoo._core import precision
from tokenzoo.kernels import neighbour_density
from tokenzoo.kernels.neighbour_density import _by_triangle, _known, _plain, nearest_squares

LONG = 700  # more than one block
CLOSE: Any = {"rtol": 1e-9, "atol": 1e-9}


def squares_by_hand(features: Tensor, k: int) -> Tensor:
    """The k smallest squared distances to others, from differences: `[b, n, k]`, ascending."""
    square = (features[:, :, None] - features[:, None]).square().sum(-1)
    square = square.masked_fill(torch.eye(features.shape[1], dtype=torch.bool), math.inf)
    return square.sort(-1).values[..., : min(k, features.shape[1] - 1)]


def density_by_hand(features: Tensor, k: int, tau: float | None) -> Tensor:
    nearest = squares_by_hand(features, k)
    if not nearest.numel():
        return features.new_zeros(features.shape[:2])  # a single token has no neighbourhood
    square = nearest.mean((1, 2), keepdim=True) if tau is None else tau**2
    return (-nearest / square).exp().mean(-1)


@given(
    st.integers(1, 3),
    st.integers(1, 14),
    st.integers(1, 5),
    st.integers(1, 15),
    st.integers(1, 15),
    st.none() | st.floats(0.1, 10),
    st.integers(0, 999),
)
@settings(max_examples=60)
def test_blocks_of_any_size_find_the_nearest(
    b: int, n: int, d: int, k: int, block: int, tau: float | None, seed: int
) -> None:
    features = draws(seed, b, n, d)
    found = neighbour_density(features, k, tau)
    torch.testing.assert_close(found, density_by_hand(features, k, tau), **CLOSE)
    if n == 1:
        return
    k = min(k, n - 1)
    for squares in (
        _by_triangle(*_known(features), k, block)[0],
        _plain(features, k)[0],
        _plain(features, k, whole=block)[0],
    ):
        torch.testing.assert_close(squares.sort(-1).values, squares_by_hand(features, k), **CLOSE)


@pytest.mark.parametrize(("k", "tau"), [(1, None), (5, 3.0), (12, None)])
def test_long_rows(k: int, tau: float | None) -> None:
    features = draws(0, 2, LONG, 6)
    expected = density_by_hand(features, k, tau)
    torch.testing.assert_close(neighbour_density(features, k, tau), expected, **CLOSE)
    found = neighbour_density(features.float(), k, tau)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bad_tokens_are_nobodys_neighbour_in_any_block(value: float) -> None:
    features = draws(1, 2, LONG, 4)
    bad = [0, 3, 319, 320, 640, LONG - 1]
    others = [i for i in range(LONG) if i not in bad]
    broken = features.clone()
    broken[:, bad] = value
    nearest, squares = nearest_squares(broken, 5)
    assert bool((squares[:, bad] == math.inf).all())
    assert bool((nearest[:, bad] == math.inf).all())
    expected = squares_by_hand(features[:, others], 5)
    torch.testing.assert_close(nearest[:, others].sort(-1).values, expected, **CLOSE)
    for some, tau in ((features, None), (features[:, :9], 2.0)):
        broken = some.clone()
        broken[:, 3] = value
        density = neighbour_density(broken, 5, tau)
        assert bool((density[:, 3] == 0).all())
        assert bool(density.isfinite().all())
        if tau is not None:
            alone = neighbour_density(some[:, [0, 1, 2, 4, 5, 6, 7, 8]], 5, tau)
            torch.testing.assert_close(density[:, [0, 1, 2, 4, 5, 6, 7, 8]], alone)


def test_where_fewer_than_k_others_are_numbers_the_rest_is_infinitely_far() -> None:
    features = draws(2, 1, LONG, 3)
    features[:, 2:] = math.nan
    nearest, _ = nearest_squares(features, 4)
    assert nearest[0, :2].isfinite().sum(-1).tolist() == [1, 1]
    assert bool((nearest[0, 2:] == math.inf).all())


@pytest.mark.parametrize(("n", "d"), [(9, 1152), (64, 768), (LONG, 6), (LONG, 768)])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("tau", [None, 1.0])
def test_equal_tokens_are_one_crowd_in_any_block(
    n: int, d: int, exact: bool, tau: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exact:  # as on a GPU, and in exported programs
        monkeypatch.setattr(precision, "exact", lambda values: False)
    features = (draws(3, 2, 1, d) * 3).expand(2, n, d).float()
    assert bool((neighbour_density(features, 5, tau) > 0.9).all())


def test_an_image_is_treated_as_if_it_were_alone() -> None:
    features = draws(4, 3, LONG, 8).float()
    together = neighbour_density(features, 5, None)
    alone = torch.cat([neighbour_density(image[None], 5, None) for image in features])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


def test_memory_grows_with_the_tokens_and_the_host_never_waits() -> None:
    largest = []
    for n in (1000, 2000, 4000):
        with Watch(strict=True) as watch:
            neighbour_density(torch.zeros(2, n, 4), 5, None)
        largest.append(watch.largest)
    assert largest[2] < 2.1 * largest[1] < 4.3 * largest[0]
    assert largest[2] < 4000 * 400  # of 16 million distances


@pytest.mark.parametrize("n", [9, LONG])
def test_gradients_are_those_of_the_formula(n: int) -> None:
    features = draws(5, 2, n, 4).requires_grad_()
    (found,) = torch.autograd.grad(neighbour_density(features, 3, None).square().sum(), features)
    (wanted,) = torch.autograd.grad(density_by_hand(features, 3, None).square().sum(), features)
    assert bool(found.abs().sum() > 0)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


class Density(torch.nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return neighbour_density(features, 5, None)


@pytest.mark.usefixtures("clean_compiler")
@pytest.mark.parametrize("n", [40, LONG])
def test_compiled_and_exported(n: int) -> None:
    features = draws(6, 2, n, 8).float()
    expected = neighbour_density(features, 5, None)
    close: Any = {"rtol": 1e-4, "atol": 1e-5}
    with torch.no_grad():
        compiled = torch.compile(Density(), fullgraph=True, backend="aot_eager")(features)
    torch.testing.assert_close(compiled, expected, **close)
    batch = torch.export.Dim("batch", min=2, max=9)
    program = torch.export.export(Density(), (features,), dynamic_shapes=({0: batch},))
    assert not any("tokenzoo" in str(node.target) for node in program.graph.nodes)
    twice = program.module()(features.repeat(2, 1, 1))
    torch.testing.assert_close(twice, expected.repeat(2, 1), **close)


def test_the_compiled_operation_is_what_it_says() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        features = draws(7, 2, 9, 4).to(dtype)
        torch.library.opcheck(torch.ops.tokenzoo.nearest_squares.default, (features, 3))
        assert neighbour_density(features, 3, 1.0).dtype == torch.promote_types(
            dtype, torch.float32
        )
