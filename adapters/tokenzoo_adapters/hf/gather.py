"""Masks, positions, keys and attention of some tokens of a prompt: pure functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenzoo.errors import AttachError
from tokenzoo.kernels import attention_rows
from tokenzoo.token_map import take


def put_back(full: Tensor, index: Tensor, valid: Tensor | None, x: Tensor) -> Tensor:
    """Put `x [b, m, c]` into `full [b, n, c]` at `index [b, m]`, where it is valid."""
    if valid is not None:
        x = torch.where(valid[..., None].to(x.device), x, take(full, index).to(x.device))
    at = index[..., None].expand(-1, -1, x.shape[-1])
    return full.to(x.device).scatter(1, at.to(x.device), x)


def heads_at(key: Tensor, places: Tensor) -> Tensor:
    """Keys `[g, h, k, d]` at `places [g, n]`."""
    at = places[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3])
    return key.gather(2, at)


def attention_of(
    columns: Tensor, query: Tensor, key: Tensor, scale: float, places: Tensor, real: Tensor
) -> Tensor:
    """Attention from the tokens in `columns [g, t]` to those in `places [g, n]`: `[g, h, t, n]`.

    Args:
        columns: of the queries.
        query: `[g, h, q, d]`, of the last q columns.
        key: `[g, h or fewer, k, d]`.
        scale: the factor on the inner products.
        places: columns of the keys.
        real: `[g, k]` bool, False at padding.
    """
    query = heads_at(query, columns - (key.shape[2] - query.shape[2]))
    return attention_to(query, columns, key, scale, places, real)


def attention_to(
    query: Tensor, columns: Tensor, key: Tensor, scale: float, places: Tensor, real: Tensor
) -> Tensor:
    """The same with the queries `[g, h, t, d]` of the tokens in `columns` alone."""
    h, k = query.shape[1], key.shape[2]
    key = key.repeat_interleave(h // key.shape[1], 1)  # grouped queries: [g, h, k, d]
    later = torch.arange(k, device=key.device) > columns[..., None]  # [g, t, k]
    bias = torch.zeros(later.shape, dtype=torch.float32, device=key.device)
    bias = bias.masked_fill(later | ~real[:, None], -torch.inf)
    weights = attention_rows(query, key, scale=scale, bias=bias[:, None])  # [g, h, t, k]
    return weights.gather(3, places[:, None, None].expand(-1, h, query.shape[2], -1))


def layer_mask(
    mask: Any,
    index: Tensor,
    columns: Tensor,
    valid: Tensor | None,
    x: Tensor,
    implementation: str,
) -> Any:
    """A layer's mask for the tokens that are left.

    Args:
        mask: for all tokens: None (causal, no padding), `[b, k]` (flash attention), or `[b, h or 1, n, k]`,
            boolean or added to the logits.
        index: `[b, m]`, the rows.
        columns: `[b, k]`, the columns.
        valid: `[b, k]`, which columns are not filler; None: all.
        x: the tokens `[b, m, c]`.
        implementation: name of the attention implementation.

    Raises:
        AttachError: the mask is of another kind.
    """
    b, m, k = x.shape[0], index.shape[1], columns.shape[1]
    place = torch.arange(k, device=x.device)
    row = torch.arange(k - m, k, device=x.device)[:, None]
    if mask is None:
        if valid is None:
            return None
        if "flash" in implementation:
            return valid.to(torch.int64)
        # Filler attends to itself: attention to nothing would be NaN.
        seen = (place <= row) & (valid[:, None, None] | (place == row))  # [b, 1, m, k]
        if "eager" not in implementation:
            return seen
        added = torch.zeros(seen.shape, dtype=x.dtype, device=x.device)
        return added.masked_fill(~seen, torch.finfo(x.dtype).min)
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        raise AttachError(
            f"the language model got a mask of type {type(mask).__name__}, which is not supported at the "
            "stage 'llm': model.set_attn_implementation('sdpa') before attach"
        )
    if mask.ndim == 2:
        kept = take(mask.expand(b, -1), columns)
        return kept if valid is None else kept * valid.to(mask.dtype)
    mask = mask.expand(b, -1, -1, -1)
    h = mask.shape[1]
    mask = mask.gather(2, index[:, None, :, None].expand(-1, h, -1, mask.shape[3]))
    mask = mask.gather(3, columns[:, None, None].expand(-1, h, m, -1))
    if valid is None:
        return mask
    seen = valid[:, None, None] | (place == row)
    if mask.dtype == torch.bool:
        return mask & seen
    return mask.masked_fill(~seen, torch.finfo(mask.dtype).min)


def compact_positions(
    positions: Tensor, index: Tensor, valid: Tensor | None, real: Tensor | None
) -> Tensor:
    """Positions of the tokens that are left, without gaps: `[b, m]`.

    Args:
        positions: `[b, n]`, of all tokens.
        index: `[b, m]`, the tokens that are left.
        valid: `[b, m]`, which of them are not filler; None: all.
        real: `[b, n]`, False at padding, which leaves no gap; None: no padding.
    """
    ones = torch.ones_like(index) if valid is None else valid.to(index.dtype)
    there = torch.zeros_like(positions).scatter(1, index, ones)
    gone = 1 - there if real is None else (1 - there) * real
    gone = gone.cumsum(1)  # [b, n]
    return take(positions - gone, index)
