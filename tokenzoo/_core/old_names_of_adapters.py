"""Members of `Adapter` that have other names since version 0.3."""

from __future__ import annotations

OLD_NAMES = {
    "follow": "adapt_block_inputs",
    "followers": "passthrough_modules",
    "trial": "probe_inputs",
    "shows": "provides_at",
    "hidden": "mlp_dim",
    "watched": "uses_attention_interface",
    "reaching": "projected_prefix",
}
"""Members of `Adapter` until version 0.3, and their names now."""
