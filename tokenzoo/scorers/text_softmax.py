"""Softmax over the tokens of their products with a question (TRIM)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.precision import precise
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer
from tokenzoo.scorers.text_relevance import check_one_space, mean_product


@dataclass(frozen=True)
class TextSoftmax(Scorer):
    """Softmax over the tokens j of -<x_j, text>, not normalised, mean over the text embeddings.

    Padding of the text (`Evidence.text_mask`) does not count.

    Args:
        layer: layer of the features in the space of the text (CLIP's projected patches); None: the tokens
            themselves.
        negated: whether a low product means relevant, as in CLIP.
    """

    layer: int | str | None = None
    negated: bool = True

    def __post_init__(self) -> None:
        self.require("text", "x" if self.layer is None else f"x@{self.layer}")

    def score(self, evidence: Evidence) -> Tensor:
        """Return scores `[b, n]`; those of tokens without NaN add up to 1."""
        x = precise(evidence.at(self.layer).x)  # [b, n, c]
        check_one_space(x, evidence.text)
        product = mean_product(x, precise(evidence.text), evidence.text_mask)  # [b, n]
        known = product.isfinite()
        logits = (-product if self.negated else product).where(
            known, torch.finfo(product.dtype).min
        )
        return logits.softmax(-1).masked_fill(~known, torch.nan)
