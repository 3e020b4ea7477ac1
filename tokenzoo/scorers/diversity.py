"""Diversity: one minus the density of a token's neighbourhood."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from tokenzoo._core.kinds import Count, OneOf, Range, Words
from tokenzoo.evidence import Evidence, needed
from tokenzoo.kernels import neighbour_density
from tokenzoo.parts import Scorer
from tokenzoo.scorers.feature_norm import Space


@dataclass(frozen=True)
class Diversity(Scorer):
    """d_i of EvoPrune (section 3.4): near 0 in a dense region, near 1 for an isolated token.

    Args:
        on: the features: "keys" (mean over heads), "all_keys", "queries" or "x". The paper does not say.
        k: number of nearest neighbours, the token itself not counted. Not given in the paper.
        tau: bandwidth of the Gaussian in the units of the features, or "image": for each image the root
            mean square distance to those neighbours. Not given in the paper.
    """

    on: Space = "keys"
    k: Count = 5
    tau: Annotated[
        Annotated[float, Range(1e-15, 1e15)] | Annotated[str, OneOf("image")],
        Words("a number > 0 (from 1e-15 to 1e15), or 'image'"),
    ] = "image"

    def __post_init__(self) -> None:
        self.require(needed(self.on))

    def score(self, evidence: Evidence) -> Tensor:
        """Return scores `[b, n]` in [0, 1]; NaN for tokens with NaN or infinite features."""
        tau = None if isinstance(self.tau, str) else self.tau
        features = evidence.features(self.on)
        score = 1 - neighbour_density(features, self.k, tau)
        # A NaN token is isolated, which would be the highest score; a NaN score is the lowest.
        return score.masked_fill(~features.sum(-1).isfinite(), math.nan)
