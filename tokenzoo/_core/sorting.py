"""Sorting and partitioning of tokens: stable, with ties to the lower index, and NaN last.

Scores are rounded for comparison by `tokenzoo._core.precision`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenzoo._core.precision import comparable


def ordered(values: Tensor, *, descending: bool = False) -> Tensor:
    """Return indices that sort the last dimension of `values [..., n]`, stably."""
    values = comparable(values)
    if torch.onnx.is_in_onnx_export():
        # ONNX has no stable sort; its TopK puts the lower index first, which gives the same order.
        return values.topk(values.shape[-1], dim=-1, largest=descending).indices
    return values.argsort(dim=-1, descending=descending, stable=True)


def descending(scores: Tensor) -> Tensor:
    """Return indices of `scores [b, n]` from the highest to the lowest; values that are not finite last."""
    worst = torch.finfo(scores.dtype).min
    return ordered(scores.nan_to_num(nan=worst, posinf=worst, neginf=worst), descending=True)


def first_highest(values: Tensor, dim: int = -1) -> Tensor:
    """Return the index of the highest value along `dim`; of equal ones, the first. NaN is the highest."""
    if not torch.compiler.is_compiling():
        return values.max(dim).indices
    # The index of a maximum that torch.compile fuses with strided operands is another one in torch before
    # 2.14 (pytorch#178964); the maximum itself is right.
    values = values.detach().movedim(dim, -1)
    highest = (values == values.amax(-1, keepdim=True)) | values.isnan()
    place = torch.arange(values.shape[-1], device=values.device)
    return place.where(highest, values.shape[-1]).amin(-1)


def choose(pool: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Split `pool [b, p]` into its entries at the indices `chosen [b, k]`, and the rest in pool order."""
    taken = torch.zeros_like(pool).scatter(1, chosen, 1)
    free = ordered(taken)[:, : pool.shape[1] - chosen.shape[1]]  # the free entries come first
    return pool.gather(1, chosen), pool.gather(1, free)


def distinct(picks: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """Order all indices, picked ones first: `[b, places]`, and the number of distinct picks: `[b]`.

    `picks [b, k]` can repeat; the first occurrence counts. The other indices follow in ascending order.
    """
    b, k = picks.shape
    place = torch.arange(k, k + places, device=picks.device).expand(b, places)
    turn = torch.arange(k, device=picks.device).expand(b, k)
    first = place.scatter_reduce(1, picks, turn, "amin")
    return ordered(first), (first < k).sum(-1)


def places(order: Tensor) -> Tensor:
    """Return the inverse of the permutation `order [b, p]`."""
    place = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, place)


def place_in_group(group: Tensor, place: Tensor) -> Tensor:
    """Return the number of tokens of the same `group [b, p]` with a lower `place [b, p]`: `[b, p]`.

    Groups are integers >= 0, places distinct integers below p.
    """
    if torch.onnx.is_in_onnx_export():  # ONNX has no cummax
        before = (group[:, None] == group[..., None]) & (place[:, None] < place[..., None])
        return before.sum(-1)
    p = group.shape[1]
    order = ordered(group * p + place)
    sorted_groups = group.gather(1, order)
    at = torch.arange(p, device=group.device).expand_as(order)
    starts = sorted_groups.diff(dim=1, prepend=sorted_groups[:, :1] - 1) != 0
    first = at.where(starts, 0).cummax(1).values
    return torch.empty_like(order).scatter(1, order, at - first)


def first_of(k: int, *keys: Tensor) -> Tensor:
    """Return the first k indices in lexicographic order of `keys`: `[b, k]`.

    Keys are integers `[b, p]` from 0 to 2 or below p.
    """
    base = max(3, keys[0].shape[1])
    total = keys[0]
    for key in keys[1:]:
        total = total * base + key
    return ordered(total)[:, :k]


def run_of(spot: Tensor, n: int, count: Tensor | int) -> Tensor:
    """Return the run of each place `spot` of n places cut into `count` runs, the longer ones first.

    The shapes of `spot` and `count` broadcast; with a count of 0 there is one run.
    """
    parts = max(1, count) if isinstance(count, int) else count.clamp_min(1)
    size, longer = n // parts, n % parts
    wide = (size + 1) * longer
    step = max(1, size) if isinstance(size, int) else size.clamp_min(1)
    return torch.where(spot < wide, spot // (size + 1), longer + (spot - wide) // step)
