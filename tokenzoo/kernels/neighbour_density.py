"""How crowded the neighbourhood of each token is."""

from __future__ import annotations

import torch
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
    # ||a - b||^2 = |a|^2 + |b|^2 - 2ab: one matrix product; the far ones need no precision.
    distance = squares[:, :, None] + squares[:, None] - 2 * (features @ features.mT)  # [b, n, n]
    distance = distance.clamp_min(0).nan_to_num(nan=torch.inf, posinf=torch.inf)
    own = torch.eye(n, dtype=torch.bool, device=features.device)
    nearest = (
        distance.masked_fill(own, torch.inf).topk(k, dim=-1, largest=False).values
    )  # [b, n, k]
    if tau is not None:
        return (-nearest / tau**2).exp().mean(-1)
    finite = nearest.isfinite()
    total = nearest.where(finite, 0).sum((1, 2), keepdim=True)
    square = total / finite.sum((1, 2), keepdim=True).clamp_min(1)
    # All tokens equal: the distances are rounding errors of the squares, and everything is a crowd.
    floor = squares.nan_to_num(nan=0, posinf=0).mean(-1)[:, None, None] * 1e-6
    return (-nearest / torch.maximum(square, floor).clamp_min(1e-30)).exp().mean(-1)
