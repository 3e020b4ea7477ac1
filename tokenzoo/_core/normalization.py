"""Scores on a scale of their own image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tokenzoo._core.precision import comparable

TINY = 1e-12


def normalized(scores: Tensor, how: Literal["minmax", "rank", "zscore"]) -> Tensor:
    """Normalise scores `[b, n]` in each image.

    Scores that are not finite have no part in the scale, and come just below the lowest of the others.

    Args:
        scores: `[b, n]`.
        how: "minmax" and "rank" (share of the others that are lower) give values in [0, 1], "zscore" mean
            0 and variance 1.
    """
    finite = scores.isfinite()
    low = scores.where(finite, torch.inf).amin(-1, keepdim=True)
    high = scores.where(finite, -torch.inf).amax(-1, keepdim=True)
    scores = scores.where(finite, low)
    if how == "zscore":
        count = finite.sum(-1, keepdim=True).clamp_min(1)
        mean = scores.where(finite, 0).sum(-1, keepdim=True) / count
        centred = scores - mean
        variance = centred.square().where(finite, 0).sum(-1, keepdim=True) / count
        result = centred / (variance.sqrt() + TINY)
    elif how == "rank":
        # Equal scores have equal ranks. searchsorted wants contiguous input.
        compared = comparable(scores).contiguous()
        lower = torch.searchsorted(compared.sort(dim=-1).values, compared)
        result = lower.to(scores.dtype) / max(1, scores.shape[-1] - 1)
    else:
        result = (scores - low) / (high - low + TINY)
    # Below the lowest, so that it stays the lowest in a sum, too.
    return result - (~finite).to(result.dtype) * 1e-3
