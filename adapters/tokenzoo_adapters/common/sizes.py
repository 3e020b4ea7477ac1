"""Sizes of modules, for the count of operations."""

from __future__ import annotations

from typing import Any


def mlp_width(mlp: Any, width: int) -> int:
    """The hidden width of a plain two-layer MLP that costs as much as this one (SwiGLU has three).

    Four times `width` where no weight matrix is found (quantised layers keep none).
    """
    weights = [p for p in mlp.parameters() if p.ndim == 2]
    return sum(p.numel() for p in weights) // (2 * width) or 4 * width
