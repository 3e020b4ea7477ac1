"""What a cache remembers of the prompt that it was made of, and masks and positions of calls that go on.

A caller goes on in the coordinates of the whole prompt; the cache has those of the short one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenzoo_adapters.hf.names import MASK, POSITIONS, cache_of
from tokenzoo_adapters.hf.vlm.placeholders import Shortened

CACHED = "_tokenzoo_prompt"
"""Where a cache keeps its `CachedPrompt`."""

COUNTED = "_tokenzoo_counted"
"""On a cache whose tokens have positions that do not count padding."""


@dataclass(frozen=True)
class CachedPrompt:
    """What a cache was made of.

    Attributes:
        full: the caller's prompt `[b, n]`.
        short: what the model read instead `[b, m]`.
        mask: `[b, m]`, 0 at padding.
        lost: `[b, 1]`, how many tokens of each prompt were taken out; columns may also become padding.
        positions: `[3, b, m]`, where the tokens keep the positions of the caller's prompt; otherwise None.
        after: `[b, 1]`, the position of what comes next then.
    """

    full: Tensor
    short: Tensor
    mask: Tensor
    lost: Tensor
    positions: Tensor | None = None
    after: Tensor | None = None

    @property
    def removed(self) -> int:
        """How many columns the caller's prompt is longer."""
        return self.full.shape[1] - self.short.shape[1]

    def begins(self, ids: Tensor) -> bool:
        """Whether a prompt goes on where this one ended."""
        n = self.full.shape[1]
        return ids.shape[1] >= n and torch.equal(ids[:, :n], self.full)


def moved_positions(
    positions: Tensor, short: Shortened, mask: Tensor | None, ids: Tensor
) -> Tensor:
    """The caller's positions, less the tokens that were taken out before: as if it had been short."""
    real = torch.ones_like(ids) if mask is None else mask.to(ids.dtype)
    before = short.take(real.cumsum(-1), 0)
    now = short.take(real, 0).cumsum(-1)
    moved = short.take(positions.expand(*positions.shape[:-2], *ids.shape), 0)
    return (moved - (before - now)).clamp_min(0)


def kept_positions(
    positions: Tensor, index: Tensor, ids: Tensor, kept: Mapping[int, list[Tensor]]
) -> Tensor:
    """The caller's positions of the tokens that are left: `[..., b, n] -> [..., b, m]`.

    Args:
        positions: one for each token of the caller's prompt.
        index: `[b, m]`, the caller's column of each; of an image its first columns, as many as are left.
        ids: `[b, m]`.
        kept: by placeholder, which of its columns are left of each image.
    """
    index = index.to(positions.device).clamp_min(0)
    for token, several in kept.items():
        further = torch.cat(
            [left.to(index) - torch.arange(len(left)).to(index) for left in several]
        )
        here = ids.to(index.device) == token
        index = index + torch.zeros_like(index).masked_scatter(here, further)
    return positions.gather(-1, index.expand(*positions.shape[:-2], *index.shape))


def counted(given: dict[str, Any], *, begins: bool) -> dict[str, Any]:
    """Positions without padding, as `generate` makes them: a choice by keys depends on positions.

    Args:
        given: the arguments of a call.
        begins: whether it has images, and so decides for what is decoded later.
    """
    mask, ids, cache = given.get(MASK), given.get("input_ids"), cache_of(given)
    past = 0 if cache is None else int(cache.get_seq_length())
    if given.get(POSITIONS) is not None or not isinstance(mask, Tensor):
        return given
    if not isinstance(ids, Tensor) or mask.shape != (ids.shape[0], past + ids.shape[1]):
        return given
    if not (getattr(cache, COUNTED, False) if past else begins):
        return given
    positions = (mask.long().cumsum(-1) - 1).clamp_min(0)
    return {**given, POSITIONS: positions[:, past:]}


def in_cache(given: dict[str, Any], *, moves: bool) -> dict[str, Any]:
    """In a decoding loop by hand: mask and positions, the caller's, become the cache's.

    Args:
        given: the arguments of a call.
        moves: whether positions count the tokens of the cache, and not those of the caller's prompt.
    """
    cache, mask, ids = cache_of(given), given.get(MASK), given.get("input_ids")
    cached: CachedPrompt | None = getattr(cache, CACHED, None)
    if cached is None or not isinstance(mask, Tensor) or mask.ndim != 2 or ids is None:
        return given
    expected = int(cache.get_seq_length()) + ids.shape[1]
    if mask.shape[1] != expected + cached.removed:
        return given
    rest = mask[:, cached.full.shape[1] :]
    new = {**given, MASK: torch.cat([cached.mask.to(mask), rest], 1)}
    positions = given.get(POSITIONS)
    if moves and isinstance(positions, Tensor):
        new[POSITIONS] = positions - cached.lost.to(positions)
    return new
