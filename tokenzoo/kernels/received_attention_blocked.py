"""Received attention in tiles of half a million numbers, in two reused buffers.

A tile is all queries of a few heads of one image, or some queries of one head. Larger tiles exceed the
cache; with smaller ones, threads synchronise more than they compute. The tiles of a head have the same
size, up to a row: a last one of a few queries would take as long as a whole one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NUMBERS = 2**19
"""Numbers in each of the two buffers: 2 MB in float32."""


def blocked(
    query: Tensor,
    key: Tensor,
    scale: float,
    key_bias: Tensor | None,
    bias: Tensor | None,
    share: Tensor,
    numbers: int = NUMBERS,
    *,
    value: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Compute `received_attention` without gradients, with two buffers of memory.

    Args:
        query: `[b, h, m, d]`, float32 or float64.
        key: `[b, h, n, d]`, likewise.
        scale: the factor on the inner products.
        key_bias: `[b, n]` or None.
        bias: broadcasts to `[b, h, m, n]`, or None.
        share: `[b, m]` what each query counts; each row sums to 1.
        numbers: size of a buffer; at least n are used.
        value: `[b, h, n, e]` if the output of the attention is wanted, too.
        out: `[b, h, m, e]`, which it is written to.

    Returns:
        `[b, n]`.
    """
    (b, h, m, _), n = query.shape, key.shape[2]
    rows = max(1, numbers // n)
    heads = max(1, min(h, rows // m))
    queries = math.ceil(m / math.ceil(m / rows))
    logits, weights = (query.new_empty(heads * queries * n) for _ in range(2))
    total = query.new_zeros(b, n)
    everywhere = None if bias is None else bias.expand(b, h, m, n)  # a view
    for image in range(b):
        for head in range(0, h, heads):
            g = min(heads, h - head)
            keys = key[image, head : head + g].mT  # [g, d, n]
            for begin in range(0, m, queries):
                q = min(queries, m - begin)
                own = slice(begin, begin + q)
                tile = logits[: g * q * n].view(g, q, n)
                torch.baddbmm(
                    tile, query[image, head : head + g, own], keys, beta=0, alpha=scale, out=tile
                )
                if key_bias is not None:
                    tile.add_(key_bias[image])
                if everywhere is not None:
                    tile.add_(everywhere[image, head : head + g, own])
                # In-place softmax is not guaranteed; a second buffer costs little.
                map_ = weights[: g * q * n].view(g * q, n)
                torch.softmax(tile.view(g * q, n), -1, out=map_)
                weight = share[image, own]
                total[image].addmv_(map_.mT, weight if g == 1 else weight.repeat(g))
                if value is not None and out is not None:
                    out[image, head : head + g, own] = (
                        map_.view(g, q, n) @ value[image, head : head + g]
                    )
    return total.div_(h)
