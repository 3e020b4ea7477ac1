"""The attention of the words of the text, inside a language model (PruneVid, MustDrop)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer
from tokenzoo.tokens import full_precision


@dataclass(frozen=True)
class TextAttention(Scorer):
    """Attention to each token, over heads and over the text tokens after the last visual one.

    Without text all scores are 0.

    Args:
        heads: "max" or "mean" over the heads.
        words: "max" or "sum" over the text tokens.
    """

    heads: Literal["max", "mean"] = "max"
    words: Literal["max", "sum"] = "max"

    needs = frozenset({"text_attention"})

    def score(self, evidence: Evidence) -> Tensor:
        """Return scores `[b, n]`."""
        attention = full_precision(evidence.text_attention)  # [b, h, t, n]
        if attention.shape[2] == 0:
            return attention.new_zeros(attention.shape[0], attention.shape[3])
        paid = attention.amax(1) if self.heads == "max" else attention.mean(1)  # [b, t, n]
        return paid.amax(1) if self.words == "max" else paid.sum(1)
