"""Whose attention counts: that of CLS, or, in encoders without it, that of all tokens."""

from __future__ import annotations

from typing import Literal

from tokenzoo._core.validation import check_choice
from tokenzoo.parts import Scorer
from tokenzoo.scorers.cls_attention import CLSAttention
from tokenzoo.scorers.received_attention import ReceivedAttention

By = Literal["cls", "received"]


def attention_by(by: By, *, sum_heads: bool = False, layer: int | str | None = None) -> Scorer:
    """The scorer of a method that its authors built on CLS attention.

    Args:
        by: "cls", or "received": the mean attention that a token receives.
        sum_heads: add CLS attention up over the heads instead of taking the mean.
        layer: another layer's attention; None: this one's.
    """
    check_choice("by", by, "cls", "received")
    if by == "received":
        return ReceivedAttention(layer=layer)
    return CLSAttention("sum" if sum_heads else "mean", layer)
