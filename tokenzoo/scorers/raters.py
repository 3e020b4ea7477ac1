"""The attention of the text tokens that are relevant to the image (SparseVLM)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.kinds import Count
from tokenzoo._core.precision import comparable, precise
from tokenzoo._core.sorting import descending
from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import EMBEDDED, Evidence
from tokenzoo.parts import Scorer
from tokenzoo.scorers.text_relevance import products
from tokenzoo.token_map import take


@dataclass(frozen=True)
class Raters(Scorer):
    """Mean attention that the raters among the text tokens pay to each token; only in a language model.

    Raters are found in the prompt as it enters the language model: every visual token spreads a softmax of
    inner products over the text tokens after the last visual one, and those that receive more than the
    mean are raters. If none does, all are raters; without text, all scores are 0.

    Args:
        heads: use only this many heads, those in which the raters attend most to visual tokens; None: all.
        unturned: divide the attention by that of the rotary positions alone (authors' code of SparseVLM+).
            That factor can be negative or nearly 0.
    """

    heads: Count | None = None
    unturned: bool = False

    def __post_init__(self) -> None:
        self.require("text_attention", f"x@{EMBEDDED}", f"text@{EMBEDDED}")
        if self.unturned:
            self.require("text_rotation")

    def score(self, evidence: Evidence) -> Tensor:
        """Return scores `[b, n]`."""
        embedded = evidence.at(EMBEDDED)
        chosen = raters(embedded.x, embedded.text)[:, None, :, None]  # [b, 1, t, 1]
        attention = precise(evidence.text_attention)  # [b, h, t, n]
        if attention.shape[2] != chosen.shape[2]:
            raise BadArgumentError(
                f"text_attention is of {attention.shape[2]} text tokens and text@{EMBEDDED} of "
                f"{chosen.shape[2]}; both must cover the text tokens after the last visual token"
            )
        if self.unturned:
            attention = attention / precise(evidence.text_rotation)[:, None]
        count = chosen.sum(2).clamp_min(1)  # [b, 1, 1]
        paid = attention.where(chosen, 0).sum(2) / count  # [b, h, n]
        if self.heads is not None:
            total = paid.where(paid.isfinite(), 0).sum(-1)
            paid = take(paid, descending(total)[:, : self.heads])
        return paid.mean(1)


def raters(x: Tensor, text: Tensor) -> Tensor:
    """Return which of the text tokens `[b, t, c]` are raters of `x [b, n, c]`: bool `[b, t]`.

    Raises:
        BadArgumentError: the numbers of channels differ.
    """
    if x.shape[-1] != text.shape[-1]:
        raise BadArgumentError(
            f"text@{EMBEDDED} has {text.shape[-1]} channels and x@{EMBEDDED} {x.shape[-1]}; both must be "
            "embeddings of one prompt"
        )
    x, text = precise(x), precise(text)
    share = torch.softmax(products(x, text), -1)  # [b, n, t]
    known = x.isfinite().all(-1, keepdim=True)  # a NaN token has no say
    share = share.where(known, 0).sum(1) / known.sum(1).clamp_min(1)  # [b, t]
    more = comparable(share) > comparable(share.mean(-1, keepdim=True))
    return more | ~more.any(-1, keepdim=True)
