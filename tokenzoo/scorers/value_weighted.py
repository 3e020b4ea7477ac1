"""Importance as what a token adds to CLS: attention times the length of its value (ATS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tokenzoo.evidence import Evidence
from tokenzoo.interfaces import Scorer
from tokenzoo.precision import precise
from tokenzoo.tokens import norm


@dataclass(frozen=True)
class ValueWeighted(Scorer):
    """Attention to each token times the Euclidean length of its value.

    Args: by: "cls": the sum over the heads of A_h[CLS, j] * |v_hj|; "received": the mean attention that a
        token
            receives, times the sum of its lengths, for encoders without CLS.
    """

    by: Literal["cls", "received"] = "cls"

    def __post_init__(self) -> None:
        self.require("values", f"{self.by}_attention")

    def score(self, evidence: Evidence) -> Tensor:
        """Score `[b, n]`, >= 0."""
        length = norm(evidence.values)  # [b, h, n]
        if self.by == "cls":
            return (precise(evidence.cls_attention) * length).sum(1)
        return precise(evidence.received_attention) * length.sum(1)
