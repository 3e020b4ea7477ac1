"""The names of evidence, and of the layers that it can be of."""

from __future__ import annotations

from typing import Final

Layer = int | str

# The names for `needs`; `name@layer` is the evidence of another layer.
NAMES = (
    *("x", "mass", "keys", "queries", "values", "received_attention", "cls_attention"),
    *("last_attention", "text_attention", "text_rotation"),
    *("attention", "text", "grid", "frames", "depth"),
)

TEXT: Final = "text"
"""Layer name of the t text tokens after the last visual one in a language model's prompt:
`evidence.at("text").x [b, t, c]`, `.keys [b, h, t, d]`; t can be 0."""

EMBEDDED: Final = "embedded"
"""Layer name of a prompt as it enters the language model: `evidence.at("embedded").x [b, N, c]` are all
its visual tokens, before any was dropped there; `.text [b, t, c]` are the text tokens after them."""

ENTERED: Final = "entered"
"""Layer name of the tokens as they entered the block of the site, before its attention."""

PREVIOUS: Final = "previous"
"""Layer name of the same tokens as they entered the block before; the first block has none."""

NEXT: Final = "next"
"""Layer name of the next layer of a language model, before it runs."""


def layer_of(need: str) -> Layer | None:
    """Return the layer of a need such as "cls_attention@-2", an int if it is a number."""
    layer = need.partition("@")[2]
    return int(layer) if layer.lstrip("-").isdigit() else layer or None


def needed(on: str) -> str:
    """Return the need that `Evidence.features(on)` reads."""
    return "keys" if on == "all_keys" else on
