"""The hot loops against the formulas, written out, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenzoo.kernels import attention_rows, neighbour_density, received_attention


def draws(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def softmax_map(
    query: torch.Tensor, key: torch.Tensor, scale: float, bias: torch.Tensor | None
) -> torch.Tensor:
    """The whole map `[b, h, m, n]`."""
    logits = torch.einsum("bhmd,bhnd->bhmn", query, key) * scale
    if bias is not None:
        logits = logits + bias[:, None, None]
    return logits.softmax(-1)


sizes = st.tuples(*[st.integers(1, top) for top in (3, 3, 9, 9, 6)], st.integers(0, 999))


@given(sizes, st.booleans(), st.booleans())
@settings(max_examples=40)
def test_received_attention_is_the_weighted_mean_of_the_map(
    size: tuple[int, ...], biased: bool, weighted: bool
) -> None:
    b, h, m, n, d, seed = size
    query, key = draws(seed, b, h, m, d), draws(seed + 1, b, h, n, d)
    bias = draws(seed + 2, b, n) if biased else None
    weight = draws(seed + 3, b, m).exp() if weighted else torch.ones(b, m, dtype=torch.float64)
    whole = softmax_map(query, key, 0.3, bias)
    share = weight / weight.sum(-1, keepdim=True)
    expected = torch.einsum("bhmn,bm->bn", whole, share) / h
    found = received_attention(
        query, key, scale=0.3, key_bias=bias, query_weight=weight if weighted else None
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.sum(-1), torch.ones(b, dtype=torch.float64))


@given(sizes, st.booleans())
@settings(max_examples=25)
def test_rows_are_those_of_the_map(size: tuple[int, ...], biased: bool) -> None:
    b, h, m, n, d, seed = size
    query, key = draws(seed, b, h, m, d), draws(seed + 1, b, h, n, d)
    bias = draws(seed + 2, b, n) if biased else None
    torch.testing.assert_close(
        attention_rows(query, key, scale=0.3, key_bias=bias),
        softmax_map(query, key, 0.3, bias),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_in_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    query, key = draws(0, 2, 2, 7, 8).to(dtype), draws(1, 2, 2, 7, 8).to(dtype)
    found = received_attention(query, key, scale=8**-0.5)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, received_attention(query.float(), key.float(), scale=8**-0.5))
    assert attention_rows(query, key, scale=1.0).dtype == torch.float32


def density_by_hand(features: torch.Tensor, k: int, tau: float | None) -> torch.Tensor:
    """Token by token."""
    n = features.shape[0]
    k = min(k, n - 1)
    if k < 1:
        return features.new_zeros(n)
    distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = torch.stack(
        [torch.cat([row[:i], row[i + 1 :]]).sort().values[:k] for i, row in enumerate(distance)]
    )
    square = nearest.square().mean() if tau is None else torch.tensor(tau**2, dtype=features.dtype)
    return (-nearest.square() / square).exp().mean(-1)


@given(
    st.integers(1, 3),
    st.integers(1, 14),
    st.integers(1, 5),
    st.integers(1, 9),
    st.none() | st.floats(0.1, 10),
    st.integers(0, 999),
)
@settings(max_examples=40)
def test_density_is_the_formula(
    b: int, n: int, d: int, k: int, tau: float | None, seed: int
) -> None:
    features = draws(seed, b, n, d)
    found = neighbour_density(features, k, tau)
    expected = torch.stack([density_by_hand(image, k, tau) for image in features])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert bool(((found >= 0) & (found <= 1)).all())


def test_density_of_a_crowd_is_near_one_and_alone_near_zero() -> None:
    crowd = draws(0, 1, 9, 4) * 1e-3
    features = torch.cat([crowd, torch.full((1, 1, 4), 10.0, dtype=torch.float64)], 1)
    density = neighbour_density(features, 3, 1.0)[0]
    assert bool((density[:9] > 0.99).all())
    assert density[9] < 1e-6


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_density_adapted_to_the_image_depends_on_no_scale(scale: float) -> None:
    features = draws(1, 2, 12, 5)
    torch.testing.assert_close(
        neighbour_density(features * scale, 4, None),
        neighbour_density(features, 4, None),
        rtol=1e-7,
        atol=1e-9,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tau", [None, 1.0])
def test_equal_tokens_are_one_crowd(dtype: torch.dtype, tau: float | None) -> None:
    features = draws(2, 2, 1, 6).expand(2, 8, 6).to(dtype)
    density = neighbour_density(features, 3, tau)
    assert density.dtype == (dtype if dtype != torch.bfloat16 else torch.float32)
    assert bool((density > 0.9).all())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tau", [None, 2.0])
def test_a_bad_token_is_nobodys_neighbour(value: float, tau: float | None) -> None:
    features = draws(3, 2, 9, 4)
    bad = features.clone()
    bad[:, 4] = value
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    density = neighbour_density(bad, 3, tau)
    assert bool((density[:, 4] == 0).all())
    alone = neighbour_density(features[:, others], 3, tau)
    if tau is not None:
        torch.testing.assert_close(density[:, others], alone)
    assert bool(density.isfinite().all())
    assert bool((density[:, others] > 0).all())


def test_a_single_token_has_no_neighbourhood() -> None:
    assert torch.equal(neighbour_density(torch.ones(2, 1, 3), 5, None), torch.zeros(2, 1))
