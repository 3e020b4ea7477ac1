"""The state of a pass through a language model: its prompts, the tokens that are left, its cache.

Here "columns" are the positions of tokens in the whole sequence, padding and cached tokens included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from tokenzoo.adapter import VisualTokens as VisualTokens

_STATE = "_tokenzoo_flow"

AttentionCall = tuple[Tensor, Tensor, float]
"""Queries `[b, h, q, d]`, keys `[b, h or fewer, k, d]` and the scale of one attention."""


@dataclass(frozen=True)
class Row:
    """The visual tokens of one prompt.

    Attributes:
        places: their columns, in order, without the prompt's last token, from which the answer is read.
        visuals: the images and videos that they belong to.
        last: the column of the prompt's last token.
        tokens: the number of tokens without padding, those of an answer after the prompt included.
        ends: 1 if the last token is a visual one, which is always kept; otherwise 0.
    """

    places: tuple[int, ...]
    visuals: tuple[VisualTokens, ...]
    last: int
    tokens: int
    ends: int = 0


@dataclass(frozen=True)
class Prompt:
    """The visual tokens of a batch of prompts.

    Attributes:
        rows: one for each prompt.
        mask: `[b, n]`, 0 at padding; None: no padding.
    """

    rows: tuple[Row, ...]
    mask: Tensor | None

    def real(self, x: Tensor) -> Tensor:
        """Which of the tokens `x [b, n, c]` that entered are not padding: `[b, n]`."""
        if self.mask is None:
            return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return (self.mask[:, -x.shape[1] :] != 0).to(x.device)


def prompt_of(
    ids: Tensor,
    mask: Tensor | None,
    visuals: Mapping[int, Sequence[VisualTokens]],
    length: int | None = None,
    times: int = 1,
) -> Prompt:
    """Find the visual tokens of prompts `[b, n]` that have the planned number of placeholders.

    Args:
        ids: `[b, n]`.
        mask: `[b, k]` for these and what a cache holds before them, 0 at padding; or None.
        visuals: by the id of their placeholder, in the order of the prompts.
        length: columns of the prompt, if an answer follows; None: all.
        times: rows for each prompt, one after another (beams, or several answers).
    """
    rows: list[list[int]] = cast("Any", ids).tolist()
    tail = None if mask is None else mask[:, -ids.shape[1] :]
    real: list[list[int]] | None = None if tail is None else cast("Any", tail).tolist()
    pending = {token: list(several) for token, several in visuals.items()}
    found: list[Row] = []
    for i, row in enumerate(rows):
        if i % times:
            found.append(found[-1])
            continue
        places = tuple(j for j, token in enumerate(row) if token in visuals)
        mine: list[VisualTokens] = []
        for token, several in pending.items():
            left = row.count(token)
            while left > 0 and several:
                mine.append(several.pop(0))
                left -= mine[-1].short
        kept = [j for j in range(length or len(row)) if real is None or real[i][j]]
        tokens = len(row) if real is None else sum(map(bool, real[i]))
        last = kept[-1] if kept else len(row) - 1
        ends = int(last in places)
        places = tuple(place for place in places if place != last)
        found.append(Row(places, tuple(mine), last, tokens, ends))
    return Prompt(tuple(found), mask)


def _nothing() -> Mapping[int, Columns]:
    return {}


@dataclass(frozen=True)
class DecoderState:
    """The state of a pass between two layers of the language model. It rides on the tokens.

    Attributes:
        prompt: the visual tokens of the prompts that entered; None: there are none.
        index: `[b, m]`, which of the tokens that entered are left, in order; None: all.
        valid: `[b, m]` bool, which of them are not filler; None: all.
        full: `[b, n, c]`, the tokens that entered, dropped ones with the features that they had then.
        kept: for each prompt, the columns of its visual tokens that are left.
        written: what the cache is to remember after the pass, by the layer of the step.
        recorded: the attention calls of the layer before, where the next layer's step needs them.
        embedded: `[b, n, c]`, the prompt's embeddings, where a step needs them.
    """

    prompt: Prompt | None
    index: Tensor | None = None
    valid: Tensor | None = None
    full: Tensor | None = None
    kept: tuple[Tensor, ...] = ()
    written: Mapping[int, Columns] = field(default_factory=_nothing)
    recorded: tuple[AttentionCall, ...] = ()
    embedded: Tensor | None = None

    def find(self, rows: list[int], places: Tensor) -> Tensor:
        """Map columns `[g, n]` of the tokens that entered to positions among those that are left."""
        if self.index is None:
            return places
        return torch.searchsorted(self.index[rows].contiguous(), places.contiguous())


def get_state(x: Any) -> DecoderState | None:
    """The state that rides on tokens, or None."""
    return getattr(x, _STATE, None)


def set_state(x: Tensor, state: DecoderState) -> Tensor:
    """Put the state on tokens; returns them."""
    setattr(x, _STATE, state)
    return x


@dataclass(frozen=True)
class Columns:
    """The columns that a cache holds from some layer on.

    Attributes:
        index: `[b, k]`, columns of the whole sequence.
        valid: `[b, k]` bool, which of them are not filler; None: all.
        length: columns of the whole sequence when this was written.
        lost: `[b, 1]`, position offset of later tokens (positions="compact").
    """

    index: Tensor
    valid: Tensor | None
    length: int
    lost: Tensor | None = None

    def until(self, total: int) -> tuple[Tensor, Tensor | None]:
        """Index and validity `[b, k + new]` of all columns of a sequence of `total` columns."""
        new = torch.arange(self.length, total, device=self.index.device)
        new = new.expand(self.index.shape[0], -1)
        return torch.cat([self.index, new], 1), join(self.valid, None, self.index, new)


def join(a: Tensor | None, b: Tensor | None, like_a: Tensor, like_b: Tensor) -> Tensor | None:
    """Concatenate two validities `[b, k]`; None stands for all."""
    if a is None and b is None:
        return None
    a = torch.ones_like(like_a, dtype=torch.bool) if a is None else a
    b = torch.ones_like(like_b, dtype=torch.bool) if b is None else b
    return torch.cat([a, b], 1)
