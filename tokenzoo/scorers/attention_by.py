"""The choice between CLS attention and, for encoders without CLS, received attention."""

from __future__ import annotations

from typing import Literal

from tokenzoo._core.validation import check_choice
from tokenzoo.parts import Scorer
from tokenzoo.scorers.cls_attention import CLSAttention
from tokenzoo.scorers.received_attention import ReceivedAttention

AttentionSource = Literal["cls", "received"]


def attention_by(
    attention_source: AttentionSource, *, sum_heads: bool = False, layer: int | str | None = None
) -> Scorer:
    """Return the attention scorer for a method that its authors built on CLS attention.

    Args:
        attention_source: "cls", or "received": the mean attention that a token receives.
        sum_heads: add CLS attention up over the heads instead of taking the mean.
        layer: another layer's attention; None: this one's.
    """
    check_choice("attention_source", attention_source, "cls", "received")
    if attention_source == "received":
        return ReceivedAttention(layer=layer)
    return CLSAttention("sum" if sum_heads else "mean", layer)
