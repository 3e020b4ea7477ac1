"""The attention that tokens receive, from queries and keys, without the map of all heads.

The fused attention of a model returns no weights, and a map `[b, h, n, n]` costs more than the attention
itself. Three forms compute the column means of the softmax without one:

    _plain      one head after another, `[b, m, n]` at a time: the reference, differentiable, exportable
    blocked     tiles in reused buffers: any device, memory linear in n
    columns     two passes in Triton: memory linear in n, no tile is written to memory
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenzoo.kernels.choice import plain, use_triton
from tokenzoo.kernels.received_attention_blocked import blocked
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

    Raises:
        BadArgumentError: TOKENZOO_KERNELS names a form that is not available.
    """
    given = (query, key, key_bias, bias, query_weight)
    if plain(*given):
        return _plain(query, key, scale, key_bias, bias, query_weight)
    if torch.compiler.is_compiling():
        return torch.ops.tokenzoo.received_attention(
            query, key, scale, key_bias, bias, query_weight
        )
    return _fastest(query, key, scale, key_bias, bias, query_weight)


def attend_and_receive(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, key_bias: Tensor | None = None
) -> tuple[Tensor, Tensor] | None:
    """Compute an attention, and the attention received in it, from one map.

    On the CPU in full precision this takes no longer than the fused attention alone; the outputs are
    equal up to rounding.

    Args:
        query: `[b, h, n, d]`.
        key: `[b, h, n, d]`.
        value: `[b, h, n, e]`.
        scale: the factor on the inner products.
        key_bias: `[b, n]` added to the logits of every query.

    Returns:
        `([b, h, n, e], [b, n])`: the output, laid out as `[b, n, h, e]`, and `received_attention`; None
        where the two are to be computed one after the other: on other devices, in half precision, with
        gradients, compiled or traced.
    """
    given = (query, key, value, key_bias)
    if (
        query.device.type != "cpu"
        or query.dtype not in (torch.float32, torch.float64)
        or query.ndim != 4
        or query.shape != key.shape
        or not query.dtype == key.dtype == value.dtype
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or plain(*given)
        or use_triton(query, key, value)
    ):
        return None
    b, h, n, _ = query.shape
    out = value.new_empty(b, n, h, value.shape[-1]).transpose(1, 2)
    share = _shares(query, None)
    return out, blocked(query, key, scale, key_bias, None, share, value=value, out=out)


def _fastest(
    query: Tensor,
    key: Tensor,
    scale: float,
    key_bias: Tensor | None,
    bias: Tensor | None,
    query_weight: Tensor | None,
) -> Tensor:
    """Run the form for the device of the tensors, without gradients."""
    share = _shares(query, query_weight)
    if use_triton(query, key, key_bias, bias, query_weight) and bias is None:
        from tokenzoo.kernels.received_attention_triton import columns

        return columns(query, key, scale, key_bias, share)
    return blocked(full_precision(query), full_precision(key), scale, key_bias, bias, share)


def _plain(
    query: Tensor,
    key: Tensor,
    scale: float,
    key_bias: Tensor | None,
    bias: Tensor | None,
    query_weight: Tensor | None,
) -> Tensor:
    """Compute the reference, one head at a time."""
    query, key = full_precision(query), full_precision(key)
    b, h = query.shape[:2]
    share = _shares(query, query_weight)
    total = query.new_zeros(b, key.shape[2])
    for head in range(h):
        logits = (query[:, head] * scale) @ key[:, head].mT  # [b, m, n]
        if key_bias is not None:
            logits = logits + key_bias[:, None].to(logits.dtype)
        if bias is not None:
            logits = logits + bias[:, head if bias.shape[1] > 1 else 0].to(logits.dtype)
        total = total + (share[:, None] @ logits.softmax(-1)).squeeze(1)  # [b, n]
    return total / h


def _shares(query: Tensor, weight: Tensor | None) -> Tensor:
    """Return the weight of each query in the mean, `[b, m]`, in the precision of the kernel."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    b, _, m, _ = query.shape
    if weight is None:
        return torch.full((b, m), 1 / m, dtype=dtype, device=query.device)
    weight = weight.to(dtype)
    return weight / weight.sum(-1, keepdim=True)


# One operation for torch.compile: traced tiles would be a graph of hundreds of operations, and a map per
# head would cost memory traffic.
_compiled = torch.library.custom_op(
    "tokenzoo::received_attention",
    _fastest,
    mutates_args=(),
    schema="(Tensor query, Tensor key, float scale, Tensor? key_bias, Tensor? bias, Tensor? query_weight)"
    " -> Tensor",
)


@_compiled.register_fake  # pyright: ignore[reportUnknownMemberType]
def _like(query: Tensor, key: Tensor, *others: object) -> Tensor:
    """Return empty outputs, for tracing."""
    del others
    dtype = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty((key.shape[0], key.shape[2]), dtype=dtype)


def attention_rows(
    query: Tensor,
    key: Tensor,
    *,
    scale: float,
    key_bias: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Compute the attention of a few queries: `query [b, h, q, d]`, `key [b, h, n, d]` -> `[b, h, q, n]`.

    `key_bias` and `bias` are those of `received_attention`, with q for m.
    """
    query, key = full_precision(query), full_precision(key)
    logits = (query * scale) @ key.mT
    if key_bias is not None:
        logits = logits + key_bias[:, None, None].to(logits.dtype)
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    return torch.softmax(logits, -1)
