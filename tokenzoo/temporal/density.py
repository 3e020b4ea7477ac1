"""Density peaks among groups of the rows of a batch (DPC-KNN)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenzoo._core.precision import comparable, fixed_point, precise
from tokenzoo._core.sorting import first_highest


def squared_distances(vectors: Tensor) -> Tensor:
    """Return the squared distances of `vectors [r, n, c]` over c: `[r, n, n]`; NaN for one not finite."""
    vectors = precise(vectors)
    known = vectors.isfinite()
    count = known.sum(1, keepdim=True).clamp_min(1)
    # Distances are invariant to the origin; centred features lose fewer digits in the squares.
    vectors = fixed_point(vectors - vectors.where(known, 0).sum(1, keepdim=True) / count)
    square = vectors.square().sum(-1)
    inner = vectors @ vectors.mT
    found = (square[..., None] + square[:, None] - 2 * inner).clamp_min(0) / vectors.shape[-1]
    own = torch.eye(found.shape[-1], dtype=torch.bool, device=found.device)
    return found.masked_fill(own & found.isfinite(), 0)


def density_peaks(
    square: Tensor, same: Tensor, k: int, most: Tensor | None = None, *, ties: bool = True
) -> Tensor:
    """Return the density of each vector times its distance to the nearest denser one of its group.

    Args:
        square: `[r, n, n]` squared distances.
        same: `[r, n, n]` bool, whether two vectors are of one group.
        k: nearest vectors that the density looks at, the vector itself counted.
        most: `[r, n]`, another limit of k for each vector, at least 1; None: k for all.
        ties: whether, of equally dense vectors, that with the lower index counts as denser.

    Returns:
        `[r, n]`, NaN where a distance is. The densest of a group has the group's largest distance.
    """
    n = square.shape[-1]
    known = square.diagonal(dim1=1, dim2=2).isfinite()  # [r, n]
    same = same & known[:, None] & known[..., None]
    nearest = square.where(same, torch.inf).topk(min(k, n), dim=-1, largest=False).values
    used = nearest.isfinite()
    if most is not None:
        used = used & (torch.arange(used.shape[-1], device=square.device) < most[..., None])
    mean = nearest.where(used, 0).sum(-1) / used.sum(-1).clamp_min(1)
    density = comparable((-mean).exp())  # [r, n]
    index = torch.arange(n, device=square.device)
    one, other = density[..., None], density[:, None]
    denser = other > one
    if ties:
        denser = denser | ((other == one) & (index < index[:, None]))
    denser = denser & same
    reach = square.where(same, 0).amax(-1)
    reach = reach[:, None].where(same, 0).amax(-1)  # of the whole group
    gap = square.where(denser, torch.inf).amin(-1).minimum(reach).sqrt()
    return (gap * density).masked_fill(~known, math.nan)


def nearest_slots(square: Tensor, same: Tensor, slot: Tensor) -> Tensor:
    """Return the slot of the nearest vector of the same group that has one: `[r, n]`; -1: none has.

    Args:
        square: `[r, n, n]` squared distances.
        same: `[r, n, n]` bool, whether two vectors are of one group.
        slot: `[r, n]`, -1 for a vector without a slot.
    """
    far = square.where(same & (slot >= 0)[:, None], torch.inf).nan_to_num(nan=torch.inf)
    nearest = first_highest(-far)
    found = far.gather(2, nearest[..., None])[..., 0].isfinite()
    return slot.gather(1, nearest).where(found, -1)
