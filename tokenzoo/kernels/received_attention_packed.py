"""The attention that tokens of a packed sequence receive, each from those of its own segment."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenzoo.kernels.choice import plain, use_triton
from tokenzoo.kernels.received_attention import received_attention


def received_in_segments(
    query: Tensor,
    key: Tensor,
    bounds: Tensor,
    longest: int,
    *,
    scale: float,
    key_bias: Tensor | None = None,
    query_weight: Tensor | None = None,
) -> Tensor:
    """The column sums of softmax(q k^T), which is zero between segments: mean over heads.

    Args:
        query: `[h, r, d]`.
        key: `[h, r, d]`.
        bounds: `[s + 1]` ints from 0 to r, ascending: where segments begin and end. One may be empty.
        longest: no segment is longer.
        scale: the factor on the inner products.
        key_bias: `[r]` added to the logits of every query (log mass).
        query_weight: `[r]` non-negative weights of the queries in the sum; None: 1 each.

    Returns:
        `[r]` float32 (float64 for float64 inputs): of a segment the sum is that of its weights.

    Raises:
        BadArgumentError: TOKENZOO_KERNELS asks for what is not there.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    if query_weight is None:
        weight = torch.ones(query.shape[1], dtype=dtype, device=query.device)
    else:
        weight = query_weight.to(dtype)
    given = (query, key, key_bias, query_weight)
    if plain(*given):
        return _padded(query, key, bounds, longest, scale, key_bias, weight)
    if torch.compiler.is_compiling():
        return torch.ops.tokenzoo.received_in_segments(
            query, key, bounds, longest, scale, key_bias, weight
        )
    return _fastest(query, key, bounds, longest, scale, key_bias, weight)


def _fastest(
    query: Tensor,
    key: Tensor,
    bounds: Tensor,
    longest: int,
    scale: float,
    key_bias: Tensor | None,
    weight: Tensor,
) -> Tensor:
    """The form for the device of these tensors, without gradients."""
    if not use_triton(query, key, key_bias, weight):
        return _padded(query, key, bounds, longest, scale, key_bias, weight)
    from tokenzoo.kernels.received_attention_triton import columns

    bias = None if key_bias is None else key_bias[None]
    bounds = bounds.to(query.device)
    return columns(query[None], key[None], scale, bias, weight[None], bounds, longest)[0]


def _padded(
    query: Tensor,
    key: Tensor,
    bounds: Tensor,
    longest: int,
    scale: float,
    key_bias: Tensor | None,
    weight: Tensor,
) -> Tensor:
    """All segments as a batch, filled up to the same length: no length has to be known before it runs."""
    bounds = bounds.to(key.device, torch.int64)
    begin, end = bounds[:-1, None], bounds[1:, None]  # [s, 1]
    slot = torch.arange(longest, device=key.device)
    there = begin + slot < end  # [s, longest]
    place = (begin + slot).clamp_max(weight.shape[0] - 1)
    # An empty segment looks at a token that is not its own: a softmax over nothing would be NaN.
    bias = torch.zeros_like(weight) if key_bias is None else key_bias
    bias = bias[place].masked_fill(~there & (slot > 0), -torch.inf)
    weights = weight[place] * there
    whole = weights.sum(-1, keepdim=True)  # [s, 1], what the mean divides by; may be 0
    column = received_attention(
        query[:, place].transpose(0, 1),  # [s, h, longest, d]
        key[:, place].transpose(0, 1),
        scale=scale,
        key_bias=bias,
        query_weight=weights.where(whole > 0, 1),
    )
    at = torch.arange(weight.shape[0], device=key.device)
    segment = torch.searchsorted(bounds, at, right=True) - 1  # [r]
    return (column * whole)[segment, at - bounds[segment]]


_compiled = torch.library.custom_op(
    "tokenzoo::received_in_segments",
    _fastest,
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor bounds, SymInt longest, float scale, Tensor? key_bias,"
    " Tensor weight) -> Tensor",
)


@_compiled.register_fake  # pyright: ignore[reportUnknownMemberType]
def _like(query: Tensor, *others: object) -> Tensor:
    """What the operation returns, without its values."""
    del others
    dtype = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(query.shape[1], dtype=dtype)
