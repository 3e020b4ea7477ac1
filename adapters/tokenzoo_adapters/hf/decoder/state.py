"""What is known about a pass through a language model: its prompts, the tokens left of them, its cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from tokenzoo_adapters.hf.vlm.placeholders import Visual

Seen = tuple[Tensor, Tensor, float]
"""Queries `[b, h, q, d]` and keys `[b, h or fewer, k, d]` of one attention, and the factor."""


@dataclass(frozen=True)
class Row:
    """The visual tokens of one prompt.

    Attributes:
        places: where they are, in order; never the prompt's last token, from which the answer is read.
        visuals: which images and videos they belong to.
        last: where the prompt's last token is.
        tokens: how many tokens are no padding, an answer behind the prompt included.
        ends: 1 where the last token is a visual one, which always stays; otherwise 0.
    """

    places: tuple[int, ...]
    visuals: tuple[Visual, ...]
    last: int
    tokens: int
    ends: int = 0


@dataclass(frozen=True)
class Prompt:
    """The visual tokens of a batch of prompts.

    Attributes:
        rows: one per prompt.
        mask: `[b, n]`, 0 at padding; None: there is none.
    """

    rows: tuple[Row, ...]
    mask: Tensor | None

    def real(self, x: Tensor) -> Tensor:
        """Which of the tokens `x [b, n, c]` that entered are no padding: `[b, n]`."""
        if self.mask is None:
            return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return (self.mask[:, -x.shape[1] :] != 0).to(x.device)


def prompt_of(
    ids: Tensor,
    mask: Tensor | None,
    visuals: Mapping[int, list[Visual]],
    length: int | None = None,
    times: int = 1,
) -> Prompt:
    """Find the visual tokens of prompts `[b, n]` whose placeholders are as many as planned.

    Args:
        ids: `[b, n]`.
        mask: `[b, k]` for these and what a cache holds before them, 0 at padding; or None.
        visuals: by the id of their placeholder, in the order of the prompts.
        length: columns of the prompt, where its answer begins behind them; None: all.
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
        mine: list[Visual] = []
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
class Flow:
    """Where a pass stands between two layers of the language model.

    Attributes:
        prompt: the visual tokens of the prompts that entered, or None where there are none.
        index: `[b, m]`, which of the tokens that entered are left, in order; None: all.
        valid: `[b, m]` bool, which of them are more than filling; None: all.
        whole: `[b, n, c]`, the tokens that entered, those that were dropped as they were then.
        kept: of each prompt, where its visual tokens that are left were when they entered.
        written: what the cache is to remember when the pass is through, by the layer of the step.
        seen: the attention calls of the layer before, where the next one reduces by them.
        entered: `[b, n, c]`, the prompt as it was embedded, where a step looks at that.
    """

    prompt: Prompt | None
    index: Tensor | None = None
    valid: Tensor | None = None
    whole: Tensor | None = None
    kept: tuple[Tensor, ...] = ()
    written: Mapping[int, Columns] = field(default_factory=_nothing)
    seen: tuple[Seen, ...] = ()
    entered: Tensor | None = None


@dataclass(frozen=True)
class Columns:
    """What a cache holds from some layer on.

    Attributes:
        index: `[b, k]`, which columns of the whole sequence.
        valid: `[b, k]` bool, which of them are more than filling; None: all.
        length: columns of the whole sequence when this was written.
        lost: `[b, 1]`, how much smaller the positions of what follows are (positions="compact").
    """

    index: Tensor
    valid: Tensor | None
    length: int
    lost: Tensor | None = None

    def until(self, total: int) -> tuple[Tensor, Tensor | None]:
        """Index and validity of all columns, when the whole sequence has so many."""
        new = torch.arange(self.length, total, device=self.index.device)
        new = new.expand(self.index.shape[0], -1)
        return torch.cat([self.index, new], 1), join(self.valid, None, self.index, new)


def join(a: Tensor | None, b: Tensor | None, like_a: Tensor, like_b: Tensor) -> Tensor | None:
    """Two validities side by side; None stands for all."""
    if a is None and b is None:
        return None
    a = torch.ones_like(like_a, dtype=torch.bool) if a is None else a
    b = torch.ones_like(like_b, dtype=torch.bool) if b is None else b
    return torch.cat([a, b], 1)


def find(flow: Flow, rows: list[int], places: Tensor) -> Tensor:
    """Where the tokens that entered at `places [g, n]` are among those that are left."""
    if flow.index is None:
        return places
    return torch.searchsorted(flow.index[rows].contiguous(), places.contiguous())
