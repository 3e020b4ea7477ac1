"""The evidence that most vision towers have at their blocks."""

from __future__ import annotations

FROM_ATTENTION = frozenset(
    {"x", "mass", "keys", "queries", "values", "received_attention", "attention"}
)
"""Evidence of a block with one fused attention call; `cls_attention` and `grid` depend on the model."""
