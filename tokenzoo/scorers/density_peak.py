"""Density peaks: tokens with a high density, far from denser ones (DPC-KNN)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.kinds import Count, Share
from tokenzoo._core.precision import comparable
from tokenzoo._core.validation import floor_share
from tokenzoo.evidence import Evidence, needed
from tokenzoo.parts import Scorer
from tokenzoo.scorers.feature_norm import Space
from tokenzoo.scorers.negative_squared_distance import NegativeSquaredDistance


@dataclass(frozen=True)
class DensityPeak(Scorer):
    """Density times the distance to the nearest denser token.

    The distance is |x_i - x_j| / sqrt(d) of features with d channels; the density is exp(-mean squared
    distance to the k nearest tokens). The densest token of an image has the largest distance in the
    image. Of equally dense tokens the one with the lower index counts as denser; the authors' code adds
    noise.

    Args:
        on: the features: "x", "keys" (mean over heads), "all_keys" or "queries".
        k: number of nearest tokens, the token itself included, at most all. A float is a share of the
            tokens, rounded down, plus one.
    """

    on: Space = "x"
    k: Count | Share = 5

    def __post_init__(self) -> None:
        self.require(needed(self.on))

    def score(self, evidence: Evidence) -> Tensor:
        """Return scores `[b, n]`, >= 0; NaN for tokens that are not finite; these do not affect others."""
        width = evidence.features(self.on).shape[-1]
        square = -NegativeSquaredDistance(self.on).score(evidence).dense() / width  # [b, n, n]
        n = square.shape[-1]
        known = square.diagonal(dim1=1, dim2=2).isfinite()  # [b, n]
        both = known[:, None] & known[..., None]
        # The distance to itself is exactly 0: with k = 1 all densities are equal.
        own = torch.eye(n, dtype=torch.bool, device=square.device)
        square = square.clamp_min(0).masked_fill(own, 0)
        k = floor_share(self.k, n) + 1 if isinstance(self.k, float) else self.k
        nearest = square.where(both, torch.inf).topk(min(k, n), dim=-1, largest=False).values
        density = comparable((-nearest.mean(-1)).exp())  # [b, n]
        index = torch.arange(n, device=square.device)
        one, other = density[..., None], density[:, None]
        denser = (other > one) | ((other == one) & (index < index[:, None]))
        most = square.where(both, 0).amax((1, 2))[:, None]
        gap = square.where(both & denser, torch.inf).amin(-1).minimum(most).sqrt()
        return (gap * density).masked_fill(~known, math.nan)
