"""Received attention in Triton against float64: on CUDA, or interpreted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.kernels.interpreting import DEVICE, HALF, draws, runs
from tokenzoo.kernels import received_attention, received_in_segments
from tokenzoo.kernels.choice import forced


def both(query: Tensor, key: Tensor, **others: Tensor | None) -> tuple[Tensor, Tensor]:
    """In Triton, and in float64 without it."""
    scale = query.shape[-1] ** -0.5
    with forced("triton"):
        found = received_attention(query, key, scale=scale, **others)
    assert found.dtype == torch.float32
    double = {name: None if it is None else it.double() for name, it in others.items()}
    with forced("torch"):
        return found, received_attention(query.double(), key.double(), scale=scale, **double)


def check(found: Tensor, exact: Tensor) -> None:
    torch.testing.assert_close(found.double(), exact, rtol=2e-5, atol=1e-7)


@runs
@pytest.mark.parametrize(
    ("dtype", "m", "n", "d"),
    [
        *((torch.float32, *size) for size in ((1, 1, 3), (65, 130, 64), (130, 65, 72))),
        *((torch.float32, *size) for size in ((7, 150, 80), (70, 9, 256))),
        *((dtype, 65, 130, 72) for dtype in HALF),
    ],
    ids=str,
)
def test_widths_lengths_and_precisions(dtype: torch.dtype, m: int, n: int, d: int) -> None:
    # As views of [b, n, h, d], which is how towers have them.
    query = draws(0, 2, m, 2, d).to(dtype).transpose(1, 2)
    key = draws(1, 2, n, 2, d).to(dtype).transpose(1, 2)
    check(*both(query, key))


@runs
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_bias_of_keys_and_weights_of_queries(biased: bool, weighted: bool) -> None:
    query, key = draws(2, 2, 3, 140, 16), draws(3, 2, 3, 70, 16)
    weight = draws(4, 2, 140).exp() if weighted else None
    if weight is not None:
        weight[:, ::3] = 0
    bias = draws(5, 70, 2).T if biased else None  # with strides of its own
    check(*both(query, key, key_bias=bias, query_weight=weight))


@runs
def test_a_first_block_of_masked_keys() -> None:
    query, key, bias = draws(6, 1, 1, 9, 16), draws(7, 1, 1, 150, 16), draws(8, 1, 150)
    bias[:, :130] = -math.inf
    found, exact = both(query, key, key_bias=bias)
    check(found, exact)
    assert bool((found[:, :130] == 0).all())


@runs
def test_large_logits_overflow_nothing() -> None:
    query, key = draws(9, 1, 2, 70, 16), draws(10, 1, 2, 70, 16)
    check(*both(100 * query, 100 * key))
    bias = 300 * draws(24, 1, 70)
    check(*both(query, key, key_bias=bias))


@runs
def test_a_bad_token_is_as_bad_as_in_torch() -> None:
    query, key = draws(11, 2, 2, 9, 16), draws(12, 2, 2, 70, 16)
    key[0, 0, 3] = math.nan
    found, exact = both(query, key)
    assert torch.equal(found.isnan(), exact.isnan())
    assert not bool(found[1].isnan().any())


@runs
def test_wide_heads_come_in_pieces() -> None:
    query, key = draws(13, 1, 1, 9, 300).half(), draws(14, 1, 1, 20, 300)
    check(*both(query, key))
    check(*both(query, key.half()))


@runs
def test_a_bias_of_the_models_own_is_left_to_torch() -> None:
    query, key = draws(15, 1, 2, 5, 16), draws(16, 1, 2, 5, 16)
    check(*both(query, key, bias=draws(17, 1, 2, 5, 5)))


@runs
@pytest.mark.parametrize(
    ("dtype", "biased"), [(torch.float32, True), (torch.bfloat16, False), (torch.float16, True)]
)
def test_segments(dtype: torch.dtype, biased: bool) -> None:
    lengths = [70, 0, 3, 130, 1]
    r = sum(lengths)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int().to(DEVICE)
    query, key = (draws(i, r, 2, 72).to(dtype).transpose(0, 1) for i in (18, 19))
    bias = draws(20, r) if biased else None
    weight = draws(21, r).exp()
    weight[70:73] = 0  # a whole segment
    with forced("triton"):
        found = received_in_segments(
            query, key, bounds, 150, scale=0.1, key_bias=bias, query_weight=weight
        )
    with forced("torch"):
        exact = received_in_segments(
            query.double(),
            key.double(),
            bounds,
            150,
            scale=0.1,
            key_bias=None if bias is None else bias.double(),
            query_weight=weight.double(),
        )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=2e-5, atol=1e-6)


@runs
def test_compiled() -> None:
    query, key = draws(22, 1, 2, 9, 16), draws(23, 1, 2, 9, 16)

    def column(query: Tensor, key: Tensor) -> Tensor:
        return received_attention(query, key, scale=0.25)

    with forced("triton"):
        found = torch.compile(column, fullgraph=True, backend="aot_eager")(query, key)
    with forced("torch"):
        check(found, column(query.double(), key.double()))
