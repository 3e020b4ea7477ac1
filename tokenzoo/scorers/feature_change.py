"""How far a token's features move from one layer to another (IPCV)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenzoo._core.precision import precise
from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import ENTERED, PREVIOUS, Evidence
from tokenzoo.parts import Scorer
from tokenzoo.tokens import norm


@dataclass(frozen=True)
class FeatureChange(Scorer):
    """The Euclidean length of the difference of a token's features at two layers.

    By default that is what the block before has added to the token: the difference of what entered the
    block of the site ("entered") and what entered the block before it ("previous").

    Args:
        since: a layer, by its name.
        until: a later one.
    """

    since: str = PREVIOUS
    until: str = ENTERED

    def __post_init__(self) -> None:
        if self.since == self.until:
            raise BadArgumentError(
                f"since={self.since!r} and until={self.until!r}: nothing changes from a layer to itself; "
                "pass two layers"
            )
        self.require(f"x@{self.since}", f"x@{self.until}")

    def score(self, evidence: Evidence) -> Tensor:
        """Return scores `[b, n]`, >= 0."""
        return norm(precise(evidence.at(self.until).x) - precise(evidence.at(self.since).x))
