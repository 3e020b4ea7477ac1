"""Importance as the length of a token's features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tokenzoo.checks import check_choice
from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence, needed
from tokenzoo.interfaces import Scorer
from tokenzoo.tokens import full_precision, norm

SPACES = ("x", "keys", "queries", "all_keys")


def check_space(on: str) -> str:
    """Return the name of a feature space.

    Raises:
        BadArgumentError: there is none of this name.
    """
    return check_choice("on", on, *SPACES)


@dataclass(frozen=True)
class FeatureNorm(Scorer):
    """The norm of each token's features.

    Args:
        on: "x" (hidden states), "keys", "queries" (means over the heads), or "all_keys".
        power: 2, the Euclidean norm, or 1, the sum of the absolute values (DART).
    """

    on: str = "x"
    power: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        self.require(needed(check_space(self.on)))
        if type(self.power) is not int or self.power not in (1, 2):
            raise BadArgumentError(f"power={self.power!r}; it is 1 or 2")

    def score(self, evidence: Evidence) -> Tensor:
        """Score `[b, n]`, >= 0."""
        features = evidence.features(self.on)
        return norm(features) if self.power == 2 else full_precision(features).abs().sum(-1)
