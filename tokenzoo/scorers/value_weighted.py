"""Attention times the length of the value: the contribution of a token to CLS (ATS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tokenzoo._core.precision import precise
from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer
from tokenzoo.tokens import norm


@dataclass(frozen=True)
class ValueWeighted(Scorer):
    """Attention to each token times the Euclidean length of its value.

    Args:
        attention_source: "cls": the sum over the heads h of A_h[CLS, j] * |v_hj|; "received", for encoders
            without CLS: the mean attention that a token receives, times the sum of |v_hj| over the heads.
    """

    attention_source: Literal["cls", "received"] = "cls"

    def __post_init__(self) -> None:
        self.require("values", f"{self.attention_source}_attention")

    def score(self, evidence: Evidence) -> Tensor:
        """Return scores `[b, n]`, >= 0."""
        length = norm(evidence.values)  # [b, h, n]
        if self.attention_source == "cls":
            attention = precise(evidence.cls_attention)  # [b, h, n]
            if 1 not in (heads := {attention.shape[1], length.shape[1]}) and len(heads) > 1:
                raise BadArgumentError(
                    f"cls_attention has {attention.shape[1]} heads and values {length.shape[1]}; both must "
                    "be of the same attention: equal counts, or one head"
                )
            return (attention * length).sum(1)
        return precise(evidence.received_attention) * length.sum(1)
