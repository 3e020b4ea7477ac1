"""Pair scores from the cosine: tokens with the same direction are redundant."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from tokenzoo._core.kinds import Positive
from tokenzoo.affinity import LINEAR, Affinity, Curve, Elementwise, Exp, Linear
from tokenzoo.evidence import Evidence, needed
from tokenzoo.parts import PairScorer
from tokenzoo.scorers.feature_norm import Space
from tokenzoo.tokens import unit


@dataclass(frozen=True)
class Similarity(PairScorer):
    """The cosine of two tokens' features, as in ToMe, or an increasing function of it.

    Args:
        on: the features: "keys" (mean over heads, as in ToMe), "all_keys", "queries" or "x".
        curve: "cosine"; "nonnegative", (1 + cos) / 2, for scores that are multiplied by weights;
            "exp", exp(beta * cos); "sigmoid", 1 / (1 + exp(-beta * cos)).
        beta: steepness of "exp" and "sigmoid".
    """

    on: Space = "keys"
    curve: Literal["cosine", "nonnegative", "exp", "sigmoid"] = "cosine"
    beta: Positive = 1.0

    def __post_init__(self) -> None:
        self.require(needed(self.on))

    def nonnegative(self) -> Similarity:
        """Return this score as (1 + cos) / 2, which is >= 0, so that a weight below 1 always lowers it."""
        return replace(self, curve="nonnegative")

    def score(self, evidence: Evidence) -> Affinity:
        """Return the scores of all pairs."""
        features = unit(evidence.features(self.on))  # [b, n, d]
        return Affinity(features, features, curve=self._curve())

    def _curve(self) -> Curve:
        if self.curve == "cosine":
            return LINEAR
        if self.curve == "nonnegative":
            return Linear(0.5, 0.5)
        if self.curve == "exp":
            return Exp(self.beta)
        return Elementwise(lambda inner: torch.sigmoid(self.beta * inner))
