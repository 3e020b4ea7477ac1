"""What a cache remembers of the prompt that it was made of, and masks and positions of calls that go on.

A caller goes on in the coordinates of the whole prompt; the cache has those of the short one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenzoo.errors import AttachError
from tokenzoo_adapters.hf.names import MASK, POSITIONS, TYPES, cache_of
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
        columns: whether the positions are columns, with the padding: a call by hand, without positions.
        types: `[b, m]`, the token types; None: the call had none.
    """

    full: Tensor
    short: Tensor
    mask: Tensor
    lost: Tensor
    positions: Tensor | None = None
    after: Tensor | None = None
    columns: bool = False
    types: Tensor | None = None

    @property
    def removed(self) -> int:
        """How many columns the caller's prompt is longer."""
        return self.full.shape[1] - self.short.shape[1]

    def typed(self, given: Mapping[str, Any]) -> dict[str, Tensor]:
        """The token types of a conversation `[b, m + k]`, if a call has those of its k new tokens."""
        new = given.get(TYPES)
        if self.types is None or not isinstance(new, Tensor):
            return {}
        return {TYPES: torch.cat([self.types.to(new), new], 1)}

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


def counted(given: dict[str, Any], *, begins: bool, first: int) -> dict[str, Any]:
    """Positions without padding, as `generate` makes them: a choice by keys depends on positions.

    Args:
        given: the arguments of a call.
        begins: whether it has images, and so decides for what is decoded later.
        first: the first position.
    """
    mask, ids, cache = given.get(MASK), given.get("input_ids"), cache_of(given)
    past = 0 if cache is None else int(cache.get_seq_length())
    if given.get(POSITIONS) is not None or not isinstance(mask, Tensor):
        return given
    if not isinstance(ids, Tensor) or mask.shape != (ids.shape[0], past + ids.shape[1]):
        return given
    if not (getattr(cache, COUNTED, False) if past else begins):
        return given
    return {**given, POSITIONS: _without_padding(mask, first)[:, past:]}


def in_cache(given: dict[str, Any], *, moves: bool, first: int) -> dict[str, Any]:
    """In a decoding loop by hand: mask and positions, the caller's, become the cache's.

    A call without a mask has no padding; the cache may have, where the rows of a batch lost unequally.

    Args:
        given: the arguments of a call.
        moves: whether positions count the tokens of the cache, and not those of the caller's prompt.
        first: the first position.

    Raises:
        AttachError: positions would be made of a mask, which is missing.
    """
    cache, mask, ids = cache_of(given), given.get(MASK), given.get("input_ids")
    cached: CachedPrompt | None = getattr(cache, CACHED, None)
    if cached is None or not isinstance(ids, Tensor):
        return given
    past, positions = int(cache.get_seq_length()), given.get(POSITIONS)
    whole = past + ids.shape[1] + cached.removed
    if mask is None and not moves and positions is None:
        if bool((cached.mask == 0).any()):
            raise AttachError(
                "the rows of this batch lost unequally many tokens, so their cache has padding: pass "
                "attention_mask [b, n] and position_ids with every call, or use model.generate(**inputs)"
            )
        return given
    if mask is None:
        mask = torch.ones_like(ids[:, :1]).expand(-1, whole)
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] != whole:
        return given
    rest = mask[:, cached.full.shape[1] :]
    short = torch.cat([cached.mask.to(mask), rest], 1)
    new = {**given, MASK: short}
    types = given.get(TYPES)
    if isinstance(types, Tensor) and types.shape[1] == whole:
        new |= cached.typed({TYPES: types[:, cached.full.shape[1] :]})
    if moves and isinstance(positions, Tensor):
        new[POSITIONS] = positions - _shift(cached, positions - first, mask, past)
    elif moves and positions is None and not cached.columns:
        new[POSITIONS] = _without_padding(short, first)[:, past:]
    return new


def _without_padding(mask: Tensor, first: int) -> Tensor:
    """Positions `[b, n]`, from `first` on, that do not count padding, as `generate` makes them."""
    return (mask.long().cumsum(-1) - 1).clamp_min(0) + first


def _shift(cached: CachedPrompt, positions: Tensor, mask: Tensor, past: int) -> Tensor:
    """How much later the caller's positions are than those of the cache: `[b, 1]`.

    They are counted in the caller's prompt, or from the length of the cache.

    Args:
        cached: what the cache remembers.
        positions: the caller's `[b or 1, k]`, of k new tokens, counted from 0.
        mask: the caller's `[b, n]`.
        past: length of the cache.
    """
    first = positions[..., :1]
    seen = (mask != 0).sum(1, keepdim=True) - positions.shape[-1]  # [b, 1], in the caller's prompt
    lost = torch.full_like(cached.lost, cached.removed) if cached.columns else cached.lost
    own = (first == past) & (seen != past)
    return lost.to(first) - torch.where(own, seen - past, 0)
