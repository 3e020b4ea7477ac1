"""Importance as the length of a token's features."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenzoo.checks import check_choice
from tokenzoo.evidence import Evidence, needed
from tokenzoo.interfaces import Scorer
from tokenzoo.tokens import norm

SPACES = ("x", "keys", "queries", "all_keys")


def check_space(on: str) -> str:
    """Return the name of a feature space.

    Raises:
        BadArgumentError: there is none of this name.
    """
    return check_choice("on", on, *SPACES)


@dataclass(frozen=True)
class FeatureNorm(Scorer):
    """The Euclidean norm of each token's features.

    Args:
        on: "x" (hidden states), "keys", "queries" (means over the heads), or "all_keys".
    """

    on: str = "x"

    def __post_init__(self) -> None:
        self.require(needed(check_space(self.on)))

    def score(self, evidence: Evidence) -> Tensor:
        """Score `[b, n]`, >= 0."""
        return norm(evidence.features(self.on))
