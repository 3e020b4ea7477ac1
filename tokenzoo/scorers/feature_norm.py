"""The length of a token's features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from tokenzoo._core.kinds import OneOf
from tokenzoo._core.precision import precise
from tokenzoo.evidence import Evidence, needed
from tokenzoo.parts import Scorer
from tokenzoo.tokens import norm

SPACES = ("x", "keys", "queries", "all_keys")

Space = Annotated[str, OneOf(*SPACES)]
"""The features that an option can name."""


@dataclass(frozen=True)
class FeatureNorm(Scorer):
    """The norm of each token's features.

    Args:
        on: "x" (hidden states), "keys", "queries" (means over the heads), or "all_keys".
        power: 2, the Euclidean norm, or 1, the sum of the absolute values (DART).
    """

    on: Space = "x"
    power: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        self.require(needed(self.on))

    def score(self, evidence: Evidence) -> Tensor:
        """Return scores `[b, n]`, >= 0."""
        features = evidence.features(self.on)
        return norm(features) if self.power == 2 else precise(features).abs().sum(-1)
