"""Received attention in two passes over the logits, in Triton; neither writes a logit to memory.

In the first pass, each block of queries iterates over all keys and stores one number per query: the
logarithm of the denominator of its softmax. With it, every weight of the map can be computed on its own;
in the second pass, each block of keys iterates over all queries and sums the weights.

Logarithms and powers have base 2, which the hardware supports.
"""
# Arguments of a kernel are pointers and numbers of the GPU, those in capitals known when it is compiled.
# pyright: basic, reportArgumentType=false, reportMissingImports=false
# ruff: noqa: ANN001, ANN202, N803

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenzoo.kernels.triton_launch import device_of, precision, upcast


@triton.jit
def _place(bounds, heads, blocks, m, n, PACKED: tl.constexpr):
    """Return the block, image and head of this program, the start of its segment, its queries and keys."""
    block = tl.program_id(0) % blocks
    head = tl.program_id(0) // blocks % heads
    image = (tl.program_id(0) // blocks // heads).to(tl.int64)
    begin = image * 0
    if PACKED:
        begin = tl.load(bounds + image).to(tl.int64)
        n = (tl.load(bounds + image + 1) - begin).to(tl.int32)
        m = n
        image = image * 0
    return block, image, head, begin, m, n


@triton.jit
def _load(at, there, first, d, stride, WIDTH: tl.constexpr):
    """Load channels `first` to `first + WIDTH` of the vectors at `at [N]`, zero out of range."""
    channel = (first + tl.arange(0, WIDTH))[None, :]
    return tl.load(at[:, None] + channel * stride, mask=there[:, None] & (channel < d), other=0.0)


@triton.jit
def _product(q, k, sums, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """`q [M, D]`, `k [N, D]`, `sums [M, N]` -> `[M, N]`."""
    if UPCAST:
        q, k = q.to(tl.float32), k.to(tl.float32)
    return tl.dot(q, tl.trans(k), sums, input_precision=PRECISION)


@triton.jit
def _sums(
    query, key, bias, bounds, sums, heads, blocks, m, n, all_m, d, scale,
    qb, qh, qm, qd, kb, kh, kn, kd, bb, bn,
    BIASED: tl.constexpr, PACKED: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
    WHOLE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Store log2 of the sum over the keys, for a block of queries: `sums [b, h, all_m]`."""
    block, image, head, begin, m, n = _place(bounds, heads, blocks, m, n, PACKED)
    if block * M < m:
        row = block * M + tl.arange(0, M)
        queries = query + image * qb + head * qh + (begin + row) * qm
        if WHOLE:
            q = _load(queries, row < m, 0, d, qd, D)
        key += image * kb + head * kh + begin * kn
        bias += image * bb + begin * bn
        top = tl.full([M], float("-inf"), tl.float32)
        total = tl.zeros([M], tl.float32)
        for first in range(0, n, N):
            column = first + tl.arange(0, N)
            keys = key + column.to(tl.int64) * kn
            logits = tl.zeros([M, N], tl.float32)
            if WHOLE:
                k = _load(keys, column < n, 0, d, kd, D)
                logits = _product(q, k, logits, UPCAST, PRECISION)
            else:
                for channel in range(0, d, D):
                    a = _load(queries, row < m, channel, d, qd, D)
                    b = _load(keys, column < n, channel, d, kd, D)
                    logits = _product(a, b, logits, UPCAST, PRECISION)
            logits *= scale
            if BIASED:
                added = tl.load(bias + column * bn, mask=column < n, other=0.0).to(tl.float32)
                logits += added[None, :] * 1.4426950408889634  # log2(e)
            logits = tl.where((column < n)[None, :], logits, float("-inf"))
            higher = tl.maximum(top, tl.max(logits, 1))
            # A row that has seen only -inf has no finite maximum to subtract.
            base = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp2(top - base) + tl.sum(tl.exp2(logits - base[:, None]), 1)
            top = higher
        base = tl.where(top == float("-inf"), 0.0, top)
        at = sums + (image * heads + head) * all_m + begin + row
        tl.store(at, base + tl.log2(total), mask=row < m)


@triton.jit
def _columns(
    query, key, bias, bounds, sums, weight, column_sums, heads, blocks, m, n, all_m, all_n, d, scale,
    qb, qh, qm, qd, kb, kh, kn, kd, bb, bn, wb, wm,
    BIASED: tl.constexpr, PACKED: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
    WHOLE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Store what a block of keys receives from all queries: `column_sums [b, h, all_n]`."""
    block, image, head, begin, m, n = _place(bounds, heads, blocks, m, n, PACKED)
    if block * N < n:
        column = block * N + tl.arange(0, N)
        keys = key + image * kb + head * kh + (begin + column) * kn
        if WHOLE:
            k = _load(keys, column < n, 0, d, kd, D)
        if BIASED:
            at = bias + image * bb + (begin + column) * bn
            added = tl.load(at, mask=column < n, other=0.0).to(tl.float32) * 1.4426950408889634
        query += image * qb + head * qh + begin * qm
        sums += (image * heads + head) * all_m + begin
        weight += image * wb + begin * wm
        given = tl.zeros([M, N], tl.float32)
        for first in range(0, m, M):
            row = first + tl.arange(0, M)
            queries = query + row.to(tl.int64) * qm
            logits = tl.zeros([M, N], tl.float32)
            if WHOLE:
                q = _load(queries, row < m, 0, d, qd, D)
                logits = _product(q, k, logits, UPCAST, PRECISION)
            else:
                for channel in range(0, d, D):
                    a = _load(queries, row < m, channel, d, qd, D)
                    b = _load(keys, column < n, channel, d, kd, D)
                    logits = _product(a, b, logits, UPCAST, PRECISION)
            logits *= scale
            if BIASED:
                logits += added[None, :]
            total = tl.load(sums + row, mask=row < m, other=0.0)
            counts = tl.load(weight + row * wm, mask=row < m, other=0.0)
            # Summed at the end: a sum over rows synchronises the warps.
            weights = tl.exp2(logits - total[:, None]) * counts[:, None]
            given += tl.where((row < m)[:, None], weights, 0.0)
        at = column_sums + (image * heads + head) * all_n + begin + column
        tl.store(at, tl.sum(given, 0), mask=column < n)


def columns(
    query: Tensor,
    key: Tensor,
    scale: float,
    key_bias: Tensor | None,
    weight: Tensor,
    bounds: Tensor | None = None,
    longest: int = 0,
) -> Tensor:
    """Compute softmax(q k^T), mean over heads, weighted sum over queries: `[b, n]` float32.

    Args:
        query: `[b, h, m, d]`, with any strides.
        key: `[b, h, n, d]`, likewise.
        scale: the factor on the inner products.
        key_bias: `[b, n]` added to the logits, or None.
        weight: `[b, m]` float32.
        bounds: `[s + 1]` ints: where segments that see only themselves begin and end, for b = 1 and m = n;
            they cover the whole sequence. None: no segments.
        longest: an upper bound of the length of a segment.
    """
    if query.dtype != key.dtype:
        query, key = query.float(), key.float()
    (b, h, m, d), n = query.shape, key.shape[2]
    bias = weight if key_bias is None else key_bias
    sums, given = weight.new_empty(b, h, m), weight.new_empty(b, h, n)
    rows, columns, width = _blocks(d, query.element_size())
    lots = h * (b if bounds is None else len(bounds) - 1)
    most_m, most_n = (m, n) if bounds is None else (longest, longest)
    limits = weight if bounds is None else bounds
    strides = (*query.stride(), *key.stride(), *bias.stride())
    options = {
        "BIASED": key_bias is not None, "PACKED": bounds is not None,
        "M": rows, "N": columns, "D": width, "WHOLE": width >= d,
        "UPCAST": upcast(query), "PRECISION": precision(),
        "num_warps": 8 if rows == 128 else 4, "num_stages": 2, "enable_fp_fusion": True,
    }  # fmt: skip
    scale *= math.log2(math.e)
    row_blocks, column_blocks = triton.cdiv(most_m, rows), triton.cdiv(most_n, columns)
    with device_of(query):
        _sums[(lots * row_blocks,)](
            query, key, bias, limits, sums, h, row_blocks, m, n, m, d, scale, *strides, **options
        )
        _columns[(lots * column_blocks,)](
            query, key, bias, limits, sums, weight, given, h, column_blocks, m, n, m, n, d, scale,
            *strides, *weight.stride(), **options,
        )  # fmt: skip
    # Heads are summed here, not by atomics, whose order and rounding vary.
    return given.mean(1, dtype=torch.float32)


def _blocks(d: int, size: int) -> tuple[int, int, int]:
    """Return the block sizes of queries, keys and channels, for vectors of d numbers of this many bytes.

    The fixed side is loaded with all channels if enough registers remain; in float32 and for very wide
    heads, both sides are loaded in pieces.
    """
    width = max(16, triton.next_power_of_2(d))
    if size == 2 and width <= 256:
        return 128 if width <= 128 else 64, 64, width
    return 64, 64, 128 // size
