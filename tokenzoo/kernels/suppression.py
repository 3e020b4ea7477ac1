"""Greedy non-maximum suppression: a walk over tokens in order of their scores."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenzoo.kernels.choice import plain


def suppressed(near: Tensor) -> Tensor:
    """Return which tokens are near an earlier one that is not suppressed itself: `[b, p]` bool.

    Args:
        near: `[b, p, p]` bool, whether two tokens are near each other; the tokens are in order.
    """
    return _walk(near) if plain(near) else torch.ops.tokenzoo.suppressed(near)


def _walk(near: Tensor) -> Tensor:
    """Compute the definition; a token suppresses later ones alone."""
    gone = torch.zeros_like(near[:, 0])
    later = near.triu(1)
    for step in range(near.shape[1]):
        gone = gone | (later[:, step] & ~gone[:, step : step + 1])
    return gone


# One operation for torch.compile, which would unroll the loop.
_compiled = torch.library.custom_op(
    "tokenzoo::suppressed", _walk, mutates_args=(), schema="(Tensor near) -> Tensor"
)


@_compiled.register_fake  # pyright: ignore[reportUnknownMemberType]
def _like(near: Tensor) -> Tensor:
    """Return an empty output, for tracing."""
    return torch.empty_like(near[:, 0])
