"""Distinctness as one minus the density of a token's neighbourhood."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence, needed
from tokenzoo.interfaces import Scorer
from tokenzoo.kernels import neighbour_density
from tokenzoo.scorers.feature_norm import check_space


@dataclass(frozen=True)
class Diversity(Scorer):
    """d_i of EvoPrune (section 3.4): near 0 in a crowd, near 1 alone.

    Args:
        on: the features: "keys" (mean over heads), "all_keys", "queries" or "x". The paper does not say.
        k: number of nearest neighbours, the token itself not counted. Not given in the paper.
        tau: bandwidth of the Gaussian in the units of the features, or "image": for each image the root
            mean square distance to those neighbours. Not given in the paper.
    """

    on: str = "keys"
    k: int = 5
    tau: float | str = "image"

    def __post_init__(self) -> None:
        self.require(needed(check_space(self.on)))
        if isinstance(self.k, bool) or self.k < 1:
            raise BadArgumentError(f"k={self.k!r}; it counts neighbours: an int >= 1")
        if self.tau != "image" and not (
            isinstance(self.tau, int | float) and 0 < self.tau < math.inf
        ):
            raise BadArgumentError(f"tau={self.tau!r}; it is a number > 0, or 'image'")

    def score(self, evidence: Evidence) -> Tensor:
        """Score `[b, n]` in [0, 1]."""
        tau = None if isinstance(self.tau, str) else self.tau
        return 1 - neighbour_density(evidence.features(self.on), self.k, tau)
