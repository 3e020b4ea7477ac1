"""The attention that tokens receive, from queries and keys, without the map of all heads.

The fused attention of a model returns no weights, and a map `[b, h, n, n]` costs more than the attention
itself. One head at a time is enough for a column mean: the buffer is `[b, n, n]`, and the next head uses
it again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenzoo.tokens import full_precision


def received_attention(
    query: Tensor,
    key: Tensor,
    *,
    scale: float,
    key_bias: Tensor | None = None,
    bias: Tensor | None = None,
    query_weight: Tensor | None = None,
) -> Tensor:
    """Average softmax(q k^T) over heads and queries: how much attention each key receives.

    Args:
        query: `[b, h, m, d]`.
        key: `[b, h, n, d]`.
        scale: the factor on the inner products, usually d ** -0.5.
        key_bias: `[b, n]` added to the logits of every query, as in proportional attention (log mass).
        bias: added to the logits, broadcasts to `[b, h, m, n]`: relative positions of the model's own.
        query_weight: `[b, m]` non-negative weights of the queries in the mean; None: all equal.

    Returns:
        `[b, n]` float32 (float64 for float64 inputs); each row sums to 1.
    """
    query, key = full_precision(query), full_precision(key)
    b, h, m, _ = query.shape
    if query_weight is None:
        weight = query.new_full((b, m), 1 / m)
    else:
        weight = query_weight.to(query.dtype)
        weight = weight / weight.sum(-1, keepdim=True)
    total = query.new_zeros(b, key.shape[2])
    for head in range(h):
        logits = (query[:, head] * scale) @ key[:, head].mT  # [b, m, n]
        if key_bias is not None:
            logits = logits + key_bias[:, None].to(logits.dtype)
        if bias is not None:
            logits = logits + bias[:, head if bias.shape[1] > 1 else 0].to(logits.dtype)
        total = total + (weight[:, None] @ logits.softmax(-1)).squeeze(1)  # [b, n]
    return total / h


def attention_rows(
    query: Tensor,
    key: Tensor,
    *,
    scale: float,
    key_bias: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The attention of a few queries: `query [b, h, q, d]`, `key [b, h, n, d]` -> `[b, h, q, n]`.

    `key_bias` and `bias` are those of `received_attention`, with q for m.
    """
    query, key = full_precision(query), full_precision(key)
    logits = (query * scale) @ key.mT
    if key_bias is not None:
        logits = logits + key_bias[:, None, None].to(logits.dtype)
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    return torch.softmax(logits, -1)
