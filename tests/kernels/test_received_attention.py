"""Received attention in tiles of any size against the whole map; and how it goes through a compiler."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.compiling import clean_compiler as clean_compiler
from tests.kernels.drawing import draws
from tests.watching import Watch
from tokenzoo.kernels import (
    attend_and_receive,
    attention_rows,
    received_attention,
    received_in_segments,
)
from tokenzoo.kernels.received_attention_blocked import NUMBERS, blocked


def map_of(query: Tensor, key: Tensor, added: Tensor | float) -> Tensor:
    """The whole map `[b, h, m, n]` in float64; `added` broadcasts to it."""
    return (query.double() @ key.double().mT * 0.3 + added).softmax(-1)


def expected(query: Tensor, key: Tensor, added: Tensor | float, share: Tensor) -> Tensor:
    return (map_of(query, key, added) * share.double()[:, None, :, None]).sum(2).mean(1)


@given(
    st.tuples(*[st.integers(1, top) for top in (3, 4, 9, 9, 5)]),
    st.integers(1, 400),
    st.booleans(),
    st.none() | st.tuples(*[st.booleans()] * 4),
    st.integers(0, 999),
)
@example((2, 3, 2, 5, 4), 20, True, (True, True, True, True), 0)  # two heads, then one
@example((2, 3, 5, 4, 2), 8, True, (False, True, True, False), 1)  # two queries, then one
@settings(max_examples=80)
def test_tiles_of_any_size_make_the_map(
    size: tuple[int, ...],
    numbers: int,
    by_key: bool,
    biased: tuple[bool, ...] | None,
    seed: int,
) -> None:
    b, h, m, n, d = size
    query, key = draws(seed, b, m, h, d).transpose(1, 2), draws(seed + 1, b, h, n, d)
    share = draws(seed + 2, b, m).softmax(-1)
    key_bias = draws(seed + 3, b, n) if by_key else None
    bias = None
    if biased is not None:
        sides = [full if whole else 1 for full, whole in zip((b, h, m, n), biased, strict=True)]
        bias = draws(seed + 4, *sides)
    added = torch.zeros(b, h, m, n, dtype=torch.float64)
    added = added if key_bias is None else added + key_bias[:, None, None]
    added = added if bias is None else added + bias
    value = draws(seed + 5, b, h, n, 3)
    out = value.new_empty(b, h, m, 3)
    found = blocked(query, key, 0.3, key_bias, bias, share, numbers, value=value, out=out)
    close: Any = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(found, expected(query, key, added, share), **close)
    torch.testing.assert_close(out, map_of(query, key, added) @ value, **close)
    if bias is None:
        rows = attention_rows(query, key, scale=0.3, key_bias=key_bias)
        torch.testing.assert_close(rows, map_of(query, key, added), **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_precision_is_as_good_as_float32(dtype: torch.dtype) -> None:
    query, key = draws(0, 2, 3, 130, 72, dtype=dtype), draws(1, 2, 3, 150, 72, dtype=dtype)
    bias = draws(2, 2, 150)
    found = received_attention(query, key, scale=0.3, key_bias=bias)
    assert found.dtype == torch.float32
    share = torch.full((2, 130), 1 / 130)
    close = expected(query, key, bias[:, None, None], share)
    torch.testing.assert_close(found.double(), close, rtol=2e-5, atol=1e-8)
    assert attention_rows(query, key, scale=1.0).dtype == torch.float32


@pytest.mark.parametrize("biased", [False, True])
def test_an_attention_and_what_is_received_in_it(biased: bool) -> None:
    query, key, value = (draws(seed, 2, 9, 3, 4).float().transpose(1, 2) for seed in range(3))
    bias = draws(3, 2, 9).float() if biased else None
    found = attend_and_receive(query, key, value, scale=0.3, key_bias=bias)
    assert found is not None
    mask = None if bias is None else bias[:, None, None]
    fused = F.scaled_dot_product_attention(query, key, value, mask, scale=0.3)
    torch.testing.assert_close(found[0], fused)
    assert found[0].stride() == fused.transpose(1, 2).contiguous().transpose(1, 2).stride()
    column = received_attention(query, key, scale=0.3, key_bias=bias)
    assert torch.equal(found[1], column)


@pytest.mark.parametrize("which", ["bfloat16", "gradient", "queries", "values"])
def test_an_attention_that_is_left_to_torch(which: str) -> None:
    query, key, value = (draws(seed, 2, 3, 9, 4).float() for seed in range(3))
    if which == "bfloat16":
        query, key, value = (one.bfloat16() for one in (query, key, value))
    elif which == "gradient":
        value.requires_grad_()
    elif which == "queries":
        query = query[:, :, :5]
    else:
        value = value.double()
    assert attend_and_receive(query, key, value, scale=0.3) is None


def test_what_is_masked_by_its_bias_receives_nothing() -> None:
    query, key = draws(3, 1, 2, 5, 4), draws(4, 1, 2, 9, 4)
    bias = draws(5, 1, 9)
    bias[:, :6] = -math.inf
    found = received_attention(query, key, scale=1.0, key_bias=bias)
    assert bool((found[:, :6] == 0).all())
    alone = received_attention(query, key[:, :, 6:], scale=1.0, key_bias=bias[:, 6:])
    torch.testing.assert_close(found[:, 6:], alone)


def test_memory_grows_with_the_tokens_and_the_host_never_waits() -> None:
    n = 3000
    query, key = draws(6, 1, 2, n, 4, dtype=torch.float32), draws(7, 1, 2, n, 4).float()
    with Watch(strict=True) as watch, torch.no_grad():
        received_attention(query, key, scale=1.0)
    assert watch.largest <= NUMBERS < n * n


@pytest.mark.parametrize("which", range(5))
def test_gradients_reach_whatever_wants_them(which: int) -> None:
    given = [draws(8, 2, 2, 5, 3), draws(9, 2, 2, 6, 3), draws(10, 2, 6), draws(11, 1, 2, 5, 6)]
    given.append(draws(12, 2, 5).exp())
    given[which].requires_grad_()
    query, key, key_bias, bias, weight = given
    target = draws(13, 2, 6)
    found = received_attention(
        query, key, scale=0.3, key_bias=key_bias, bias=bias, query_weight=weight
    )
    (gradient,) = torch.autograd.grad((found * target).sum(), given[which])
    added = key_bias[:, None, None] + bias
    by_hand = expected(query, key, added, weight / weight.sum(-1, keepdim=True))
    torch.testing.assert_close(found, by_hand)
    (other,) = torch.autograd.grad((by_hand * target).sum(), given[which])
    torch.testing.assert_close(gradient, other)
    with torch.no_grad():
        assert not received_attention(query, key, scale=0.3).requires_grad


@pytest.mark.usefixtures("clean_compiler")
@pytest.mark.parametrize("biased", [False, True])
def test_compiled_and_exported(biased: bool) -> None:
    query, key = draws(14, 2, 2, 7, 4).float(), draws(15, 2, 2, 7, 4).float()
    bias = draws(16, 2, 2, 7, 7).float() if biased else None

    class Column(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor) -> Tensor:
            with torch.no_grad():
                return received_attention(query * 1, key, scale=0.5, bias=bias)

    eager = Column()(query, key)
    compiled = torch.compile(Column(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, key), eager)
    n = torch.export.Dim("n", min=2, max=99)
    shapes = None if biased else ({2: n}, {2: n})
    program = torch.export.export(Column(), (query, key), dynamic_shapes=shapes)
    assert not any("tokenzoo" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(query, key), eager)
    if not biased:
        longer = draws(17, 2, 2, 11, 4).float()
        found = program.module()(longer, longer)
        torch.testing.assert_close(found, Column()(longer, longer))


@pytest.mark.usefixtures("clean_compiler")
def test_a_compiled_step_of_training_scores_without_gradients() -> None:
    weight = draws(18, 4, 4).requires_grad_()

    def step(x: Tensor) -> Tensor:
        y = x @ weight
        with torch.no_grad():
            score = received_attention(y, y, scale=0.5)
        return (y.sum((1, 3)) * score).sum()

    x = draws(19, 2, 2, 6, 4)
    (eager,) = torch.autograd.grad(step(x), weight)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x), weight)[0], eager)


def test_the_compiled_operations_are_what_they_say() -> None:
    query, key = draws(20, 2, 2, 5, 4), draws(21, 2, 2, 6, 4)
    utils = ("test_schema", "test_faketensor")
    given = (query, key, 0.5, draws(22, 2, 6), None, None)
    torch.library.opcheck(torch.ops.tokenzoo.received_attention, given, test_utils=utils)
    bounds = torch.tensor([0, 2, 2, 5])
    packed = (query[0], query[1], bounds, 4, 0.5, None, torch.ones(5, dtype=torch.float64))
    torch.library.opcheck(torch.ops.tokenzoo.received_in_segments, packed, test_utils=utils)


@pytest.mark.usefixtures("clean_compiler")
@pytest.mark.parametrize("weighted", [False, True])
def test_a_segment_receives_what_it_receives_alone(weighted: bool) -> None:
    query, key = draws(23, 2, 9, 4), draws(24, 2, 9, 4)
    bias = draws(25, 9)
    weight = draws(26, 9).exp() if weighted else None
    bounds = torch.tensor([0, 3, 3, 8, 9])

    def packed(query: Tensor, key: Tensor) -> Tensor:
        with torch.no_grad():
            return received_in_segments(
                query, key, bounds, 6, scale=0.5, key_bias=bias, query_weight=weight
            )

    found = packed(query, key)
    for begin, end in ((0, 3), (3, 8), (8, 9)):
        own = slice(begin, end)
        alone = received_attention(
            query[None, :, own],
            key[None, :, own],
            scale=0.5,
            key_bias=bias[None, own],
            query_weight=None if weight is None else weight[None, own],
        )
        whole = end - begin if weight is None else weight[own].sum()
        torch.testing.assert_close(found[own], alone[0] * whole)
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, key), found)
