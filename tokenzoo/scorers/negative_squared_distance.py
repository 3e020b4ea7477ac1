"""Pair scores from the Euclidean distance: close tokens are redundant."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenzoo._core.precision import fixed_point, precise
from tokenzoo.affinity import Affinity
from tokenzoo.evidence import Evidence, needed
from tokenzoo.parts import PairScorer
from tokenzoo.scorers.feature_norm import Space


@dataclass(frozen=True)
class NegativeSquaredDistance(PairScorer):
    """Minus the squared distance of two tokens' features, as one inner product of d + 2 channels.

    Args:
        on: the features: "x", "keys" (mean over heads), "all_keys" or "queries".
    """

    on: Space = "x"

    def __post_init__(self) -> None:
        self.require(needed(self.on))

    def score(self, evidence: Evidence) -> Affinity:
        """Return the scores of all pairs, <= 0 up to rounding."""
        features = precise(evidence.features(self.on))  # [b, n, d]
        # Distances are invariant to the origin; centred features lose fewer digits in the squares.
        known = features.isfinite()
        count = known.sum(1, keepdim=True).clamp_min(1)
        features = features - features.where(known, 0).sum(1, keepdim=True) / count
        features = fixed_point(features)
        square = features.square().sum(-1, keepdim=True)
        one = torch.ones_like(square)
        return Affinity(
            torch.cat([2 * features, -square, -one], -1), torch.cat([features, one, square], -1)
        )
