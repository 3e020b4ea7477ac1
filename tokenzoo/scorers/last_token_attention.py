"""The attention that the last token of a prompt pays, inside a language model (FastV)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tokenzoo._core.validation import check_choice
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer
from tokenzoo.scorers.cls_attention import over_heads


@dataclass(frozen=True)
class LastTokenAttention(Scorer):
    """Attention of the prompt's last token to each token; only in a language model.

    Its softmax is over the whole prompt, so the scores depend on how the prompt is worded.

    Args:
        heads: "mean", "sum" or "max" over the heads (the first two choose the same tokens).
        layer: another layer's attention; None: that of the site.
    """

    heads: Literal["mean", "sum", "max"] = "mean"
    layer: int | str | None = None

    def __post_init__(self) -> None:
        check_choice("heads", self.heads, "mean", "sum", "max")
        self.require("last_attention" if self.layer is None else f"last_attention@{self.layer}")

    def score(self, evidence: Evidence) -> Tensor:
        """Return scores `[b, n]`."""
        return over_heads(evidence.at(self.layer).last_attention, self.heads)
