"""Received attention in a packed sequence, within each segment."""

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
    """Compute the column sums of softmax(q k^T) within segments, mean over heads.

    Args:
        query: `[h, r, d]`.
        key: `[h, r, d]`.
        bounds: `[s + 1]` ints from 0 to r, ascending: the borders of the segments, which can be empty.
        longest: an upper bound of the length of a segment.
        scale: the factor on the inner products.
        key_bias: `[r]` added to the logits of every query (log mass).
        query_weight: `[r]` non-negative weights of the queries in the sum; None: 1 each.

    Returns:
        `[r]` float32 (float64 for float64 inputs): the values of a segment add up to its weights.

    Raises:
        BadArgumentError: TOKENZOO_KERNELS names a form that is not available.
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
    """Run the form for the device of the tensors, without gradients."""
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
    """Compute all segments as a padded batch, so that no length has to be known beforehand."""
    bounds = bounds.to(key.device, torch.int64)
    begin, end = bounds[:-1, None], bounds[1:, None]  # [s, 1]
    slot = torch.arange(longest, device=key.device)
    there = begin + slot < end  # [s, longest]
    place = (begin + slot).clamp_max(weight.shape[0] - 1)
    # An empty segment attends to a foreign token: an empty softmax would be NaN.
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
    """Return empty outputs, for tracing."""
    del others
    dtype = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(query.shape[1], dtype=dtype)
