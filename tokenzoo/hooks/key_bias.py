"""What is added to the logits. Log mass without a mask: one that adds anything rules out flash attention.

The paths with flash attention of its own (transformers' "flash_attention_2") take no mask at all;
`scaled_dot_product_attention` takes one, and then does without flash.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WIDEST = 256
"""Flash attention's widest head."""


def fits(query: Tensor) -> bool:
    """Whether `scaled_dot_product_attention` would take flash for heads wider than `query`."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    return query.device.type == "cuda" and half and query.shape[-1] + 2 <= WIDEST


def widened(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Wider heads whose plain attention is that of `query`, `key`, `value` with `bias` on the logits.

    A channel of ones in the queries meets `bias / scale` in the keys. In half precision one channel cannot
    hold it: a second one has what is left. The width is a multiple of 8, as the kernels want it.

    Args:
        query: `[b, h, n, d]`.
        key: `[b, h, n, d]`.
        value: `[b, h, n, d]`; the output is as wide as the new ones, and has zeros after `d`.
        bias: `[b, n]`, for each key.
        scale: the factor on the inner products.
    """
    d = query.shape[-1]
    width = -(-(d + 2) // 8) * 8
    # A token of mass 0 has a bias of -inf, of which two channels would make NaN.
    least = torch.finfo(key.dtype).min / 2
    whole = (
        (bias.float() / scale).clamp_min(least)[:, None, :, None].expand(-1, key.shape[1], -1, 1)
    )
    high = whole.to(key.dtype)
    low = (whole - high.float()).to(key.dtype)
    query = torch.cat([query, query.new_ones(*query.shape[:-1], 2)], -1)
    key = torch.cat([key, high, low], -1)
    wide = [F.pad(x, (0, width - x.shape[-1])) for x in (query, key, value)]
    return wide[0], wide[1], wide[2]


def added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What a mask, which may be boolean (True: attend), adds to the logits: four dimensions."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)
    return mask.view(*[1] * (4 - mask.ndim), *mask.shape)


def gathered(mask: Tensor, places: Tensor) -> Tensor:
    """Rows and columns `places [b, n]` of a mask that broadcasts to `[b, h, N, N]`."""
    mask = mask.view(*[1] * (4 - mask.ndim), *mask.shape)
    mask = mask.expand(places.shape[0], -1, -1, -1)
    h, rows, columns = mask.shape[1:]
    if rows > 1:
        mask = mask.gather(2, places[:, None, :, None].expand(-1, h, -1, columns))
    if columns > 1:
        mask = mask.gather(3, places[:, None, None, :].expand(-1, h, mask.shape[2], -1))
    return mask
