"""The attention that the CLS token pays: FasterVLM, VisPruner, VisionZip, VScan, EViT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tokenzoo._core.precision import precise
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer


@dataclass(frozen=True)
class CLSAttention(Scorer):
    """Attention of the CLS token to each token.

    Args:
        heads: "mean", "sum" or "max" over the heads (the first two choose the same tokens).
        layer: another layer's attention, e.g. -2; None: this one's.
    """

    heads: Literal["mean", "sum", "max"] = "mean"
    layer: int | str | None = None

    def __post_init__(self) -> None:
        self.require("cls_attention" if self.layer is None else f"cls_attention@{self.layer}")

    def score(self, evidence: Evidence) -> Tensor:
        """Return scores `[b, n]`."""
        return over_heads(evidence.at(self.layer).cls_attention, self.heads)


def over_heads(attention: Tensor, heads: str) -> Tensor:
    """Return the mean, sum or maximum of `attention [b, h, n]` over heads, in float32 or better."""
    attention = precise(attention)
    if heads == "max":
        return attention.amax(1)
    return attention.sum(1) if heads == "sum" else attention.mean(1)
