"""How crowded the neighbourhood of each token is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenzoo.tokens import full_precision


def neighbour_density(features: Tensor, k: int, tau: float | None) -> Tensor:
    """Average a Gaussian of the distance to the K nearest other tokens (EvoPrune, section 3.4).

    density_i = mean over the K nearest k of exp(-||v_i - v_k||^2 / tau^2)

    Args:
        features: `[b, n, d]`.
        k: number of neighbours; the token itself is none of them; at most n - 1 are used.
        tau: bandwidth, in the units of the features; None: for each image the root mean square distance
            of its tokens to these neighbours, so that the density depends on no scale.

    Returns:
        `[b, n]` in [0, 1]: near 1 in a crowd, near 0 alone. A token with NaN features has density 0 and
        is nobody's neighbour as long as there are others. A single token has density 0.
    """
    features = full_precision(features)
    n = features.shape[1]
    k = min(k, n - 1)
    if k < 1:
        return features.new_zeros(features.shape[:2])
    squares = features.square().sum(-1)  # [b, n]
    known = squares.isfinite()
    features = features.where(known[..., None], 0)
    squares = squares.where(known, torch.inf)
    # ||a - b||^2 = |a|^2 + |b|^2 - 2ab; |a|^2 moves no neighbour of a, and is added to K values only.
    distance = torch.baddbmm(squares[:, None], features, features.mT, alpha=-2)  # [b, n, n]
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    nearest = _smallest(distance, k) + squares[..., None]  # [b, n, k]
    nearest = nearest.clamp_min(0)
    if tau is not None:
        return (-nearest / tau**2).exp().mean(-1)
    finite = nearest.isfinite()
    total = nearest.where(finite, 0).sum((1, 2), keepdim=True)
    square = total / finite.sum((1, 2), keepdim=True).clamp_min(1)
    # All tokens equal: the distances are rounding errors of the squares, and everything is a crowd.
    floor = squares.where(known, 0).mean(-1)[:, None, None] * 1e-6
    return (-nearest / torch.maximum(square, floor).clamp_min(1e-30)).exp().mean(-1)


def _smallest(values: Tensor, k: int) -> Tensor:
    """The k smallest of each row of `values [b, n, n]`, ascending: `[b, n, k]`."""
    n = values.shape[-1]
    if values.device.type == "cpu" and 24 * k < n < 64 * k:
        # torch uses a heap only where 64 k <= n, which on the CPU is two to three times as fast:
        # infinities make the rows long enough. Where more than that had to be added it would not pay.
        values = F.pad(values, (0, 64 * k - n), value=torch.inf)
    return values.topk(k, dim=-1, largest=False).values
