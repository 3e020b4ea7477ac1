"""Orders and partitions of tokens: stable, with ties to the lower index, and NaN last."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenzoo.plan import take


def descending(scores: Tensor) -> Tensor:
    """Indices of `scores [b, n]` from the highest to the lowest; what is not finite comes last."""
    worst = torch.finfo(scores.dtype).min
    scores = scores.nan_to_num(nan=worst, posinf=worst, neginf=worst)
    if torch.onnx.is_in_onnx_export():
        # ONNX has no stable sort; its TopK takes the smaller index first, which is the same order.
        return scores.topk(scores.shape[-1], dim=-1).indices
    return scores.argsort(dim=-1, descending=True, stable=True)


def choose(pool: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Split `pool [b, p]` into its entries at the places `chosen [b, k]`, and the rest in pool order."""
    taken = torch.zeros_like(pool).scatter(1, chosen, 1)
    order = taken.argsort(dim=-1, stable=True)  # the free places first, both in pool order
    return take(pool, chosen), take(pool, order[:, : pool.shape[1] - chosen.shape[1]])
