"""Relevance to a question: the cosine with its embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenzoo._core.one_space import check_one_space as check_one_space
from tokenzoo._core.one_space import products as products
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer
from tokenzoo.tokens import unit


@dataclass(frozen=True)
class TextRelevance(Scorer):
    """Mean cosine of a token with the text embeddings, scaled to (0, 1] in each image (CDPruner).

    CDPruner negates the cosine: in CLIP, patches that the text describes have a LOW cosine. Padding of the
    text (`Evidence.text_mask`) does not count.

    Args:
        layer: layer of the features in the space of the text (CLIP's projected patches); None: the tokens
            themselves.
        negated: whether a low cosine means relevant.
        over: "image": scale by the minimum and maximum of the image; "batch": by those of all images, as in
            CDPruner's code; the result of an image then depends on the rest of the batch.
    """

    layer: int | str | None = None
    negated: bool = True
    over: Literal["image", "batch"] = "image"

    def __post_init__(self) -> None:
        self.require("text", "x" if self.layer is None else f"x@{self.layer}")

    def score(self, evidence: Evidence) -> Tensor:
        """Return scores `[b, n]` in (0, 1]."""
        x = unit(evidence.at(self.layer).x)  # [b, n, c]
        check_one_space(x, evidence.text)
        cosine = mean_product(x, unit(evidence.text), evidence.text_mask)  # [b, n]
        relevance = -cosine if self.negated else cosine
        known = relevance.isfinite()  # a NaN token does not affect the scale, and stays NaN
        low = relevance.where(known, torch.inf).amin(-1, keepdim=True)
        high = relevance.where(known, -torch.inf).amax(-1, keepdim=True)
        if self.over == "batch":
            low, high = low.amin(), high.amax()
        # Equal scores would divide by 0: all tokens are then equally relevant.
        return (relevance - low + 1e-6) / (high - low).clamp_min(1e-6)


def mean_product(x: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean inner product of each token with the text embeddings: `[b, n]`.

    Args:
        x: tokens `[b, n, c]`.
        text: embeddings `[b, t, c]`.
        mask: `[b, t]` bool, False at padding, which does not count; None: there is none.
    """
    product = products(x, text)
    if mask is None:
        return product.mean(-1)
    count = mask.sum(-1, keepdim=True)  # [b, 1]
    return product.where(mask[:, None], 0).sum(-1) / count.clamp_min(1)
