"""Orders and partitions of tokens: stable, with ties to the lower index, and NaN last.

Scores are compared as they are rounded by `tokenzoo._core.precision`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenzoo._core.precision import comparable


def ordered(values: Tensor, *, descending: bool = False) -> Tensor:
    """Indices that sort the last dimension of `values [..., n]`; of equal ones the lower comes first."""
    values = comparable(values)
    if torch.onnx.is_in_onnx_export():
        # ONNX has no stable sort; its TopK takes the smaller index first, which is the same order.
        return values.topk(values.shape[-1], dim=-1, largest=descending).indices
    return values.argsort(dim=-1, descending=descending, stable=True)


def descending(scores: Tensor) -> Tensor:
    """Indices of `scores [b, n]` from the highest to the lowest; what is not finite comes last."""
    worst = torch.finfo(scores.dtype).min
    return ordered(scores.nan_to_num(nan=worst, posinf=worst, neginf=worst), descending=True)


def choose(pool: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Split `pool [b, p]` into its entries at the places `chosen [b, k]`, and the rest in pool order."""
    taken = torch.zeros_like(pool).scatter(1, chosen, 1)
    free = ordered(taken)[:, : pool.shape[1] - chosen.shape[1]]  # the free places come first
    return pool.gather(1, chosen), pool.gather(1, free)


def distinct(picks: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """All of so many places, those that were picked first: `[b, places]`; and how many were: `[b]`.

    Of `picks [b, k]`, which may repeat, each counts where it is picked first; the others come by place.
    """
    b, k = picks.shape
    place = torch.arange(k, k + places, device=picks.device).expand(b, places)
    turn = torch.arange(k, device=picks.device).expand(b, k)
    first = place.scatter_reduce(1, picks, turn, "amin")
    return ordered(first), (first < k).sum(-1)
