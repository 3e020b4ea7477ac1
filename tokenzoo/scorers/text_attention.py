"""The highest attention of any word of the text, inside a language model (PruneVid)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer
from tokenzoo.tokens import full_precision


@dataclass(frozen=True)
class TextAttention(Scorer):
    """Attention to each token, the maximum over heads and over the text tokens after the last visual one.

    Without text all scores are 0.
    """

    needs = frozenset({"text_attention"})

    def score(self, evidence: Evidence) -> Tensor:
        """Return scores `[b, n]`."""
        attention = full_precision(evidence.text_attention)  # [b, h, t, n]
        if attention.shape[2] == 0:
            return attention.new_zeros(attention.shape[0], attention.shape[3])
        return attention.amax((1, 2))
