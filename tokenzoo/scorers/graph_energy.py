"""Minus the energy of a token in the graph of all pairs (PiToMe): isolated tokens score high."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenzoo._core.kinds import NonNegative, Positive
from tokenzoo._core.validation import check_positive
from tokenzoo.affinity import Affinity, Curve, Elementwise
from tokenzoo.evidence import Evidence, needed
from tokenzoo.parts import Scorer
from tokenzoo.scorers.feature_norm import Space
from tokenzoo.tokens import unit


@dataclass(frozen=True)
class GraphEnergy(Scorer):
    """Minus the mean over all j of f(cos_ij): a token in a large cluster has a high energy, a low score.

    Args:
        on: the features: "keys" (mean over heads), "all_keys", "queries" or "x".
        margin: cosines below it count as dissimilar.
        fall: decrease of the margin over the tower: by fall * i / L in block i of L.
        curve: "elu": f = cos - margin if that is positive, otherwise alpha * (exp(cos - margin) - 1);
            "gaussian": f = the normal density of 1 - cos with deviation 1 - margin (PiToMe's form for
            text).
        alpha: the largest amount that a dissimilar token subtracts.
    """

    on: Space = "keys"
    margin: float = 0.5
    curve: Literal["elu", "gaussian"] = "elu"
    alpha: Positive = 1.0
    fall: NonNegative = 0.0

    def __post_init__(self) -> None:
        self.require(needed(self.on))
        if self.fall:
            self.require("depth")
        if self.curve == "gaussian":
            check_positive("1 - margin", 1 - self.margin)

    def score(self, evidence: Evidence) -> Tensor:
        """Return scores `[b, n]`; NaN for tokens that are not finite; these do not affect others."""
        features = evidence.features(self.on)
        known = features.sum(-1).isfinite()
        features = unit(features.where(known[..., None], 0))
        margin = self.margin - self.fall * evidence.depth if self.fall else self.margin
        energy = Affinity(features, features, curve=self._curve(margin)).mean()
        return (-energy).masked_fill(~known, math.nan)

    def _curve(self, margin: float) -> Curve:
        if self.curve == "elu":
            return Elementwise(lambda cosine: F.elu(cosine - margin, self.alpha))
        sigma = 1 - margin
        height = 1 / (sigma * math.sqrt(2 * math.pi))
        return Elementwise(lambda cosine: height * torch.exp(-((1 - cosine) / sigma).square() / 2))
