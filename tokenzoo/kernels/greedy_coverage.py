"""Greedy maximum coverage: each step takes the candidate that adds most to what is covered.

A set of candidates covers a thing as well as the best of them does. Two forms find the same sets:

    _plain        the gain of every candidate anew in each step: a loop of k passes over the table
    _by_changes   on the CPU: a pick changes the gains only through the things that it covers better than
                  all picks before, and these soon are few. It looks up which they are, by value

Coverages that are `summable` make every gain exact, so that on the CPU both forms have the same ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenzoo._core.precision import comparable
from tokenzoo._core.sorting import first_highest
from tokenzoo.kernels.choice import plain

BLOCK = 2**17
"""Entries of the rows that are looked at together: 1 MiB, for the cache."""


def greedy_coverage(cover: Tensor, weight: Tensor, last: Tensor, k: int) -> Tensor:
    """Choose k candidates, one by one, each with the largest weighted gain in coverage.

    gain_j = weight_j * sum over i of max(0, cover_ij - max over chosen c of cover_ic)

    Args:
        cover: `[b, r, p]`, how well candidate j of p covers thing i of r: finite, >= 0.
        weight: `[b, p]`, finite, >= 0.
        last: `[b, p]` bool, candidates that are chosen after all others.
        k: from 0 to p.

    Returns:
        `[b, k]` distinct candidates in order of choice. Ties go to the lower index.
    """
    if plain(cover, weight):
        return _plain(cover, weight, last, k)
    return torch.ops.tokenzoo.greedy_coverage(cover, weight, last, k)


def _fastest(cover: Tensor, weight: Tensor, last: Tensor, k: int) -> Tensor:
    """Run the form for the device, without gradients."""
    form = _by_changes if cover.device.type == "cpu" else _plain
    return form(cover, weight, last, k)


# One operation, also for torch.compile: it would unroll the loop, and stop where a form looks up values.
_compiled = torch.library.custom_op(
    "tokenzoo::greedy_coverage",
    _fastest,
    mutates_args=(),
    schema="(Tensor cover, Tensor weight, Tensor last, int k) -> Tensor",
)


@_compiled.register_fake  # pyright: ignore[reportUnknownMemberType]
def _like(cover: Tensor, weight: Tensor, last: Tensor, k: int) -> Tensor:
    """Return an empty output, for tracing."""
    del weight, last
    return cover.new_empty((cover.shape[0], k), dtype=torch.int64)


def _next(gain: Tensor, weight: Tensor, later: Tensor) -> Tensor:
    """Return the candidate with the largest weighted gain, those with `later [b, p]` < 0 last: `[b]`."""
    return first_highest(comparable(gain * weight) + later)


def _later(last: Tensor, like: Tensor) -> Tensor:
    """Return 0 for candidates, and for the last ones a number next to which every gain is 0: `[b, p]`."""
    return torch.zeros_like(last, dtype=like.dtype).masked_fill(last, torch.finfo(like.dtype).min)


def _plain(cover: Tensor, weight: Tensor, last: Tensor, k: int) -> Tensor:
    """Compute the definition."""
    best = torch.zeros_like(cover[..., :1])  # [b, r, 1]
    later = _later(last, cover)
    chosen: list[Tensor] = []
    for _ in range(k):
        gain = (cover - best).clamp_min(0).sum(1)  # [b, p]
        pick = _next(gain, weight, later)[:, None]  # [b, 1]
        chosen.append(pick)
        later = later.scatter(1, pick, -torch.inf)
        column = cover.gather(2, pick[:, None].expand_as(best))
        best = torch.maximum(best, column)
    return torch.cat(chosen, 1) if chosen else last.long()[:, :0]


def _by_changes(cover: Tensor, weight: Tensor, last: Tensor, k: int) -> Tensor:
    """Compute the same from the rows that change."""
    b, r, p = cover.shape
    rows = cover.flatten(0, 1)  # [b * r, p]
    best = rows.new_zeros(b * r)
    gain, later = cover.sum(1), _later(last, cover)  # [b, p]
    image = torch.arange(b)[:, None]
    chosen = torch.empty(b, k, dtype=torch.int64)
    buffer = rows.new_empty(max(1, BLOCK // p), p)
    for step in range(k):
        pick = _next(gain, weight, later)[:, None]  # [b, 1]
        chosen[:, step : step + 1] = pick
        later.scatter_(1, pick, -torch.inf)
        column = cover.gather(2, pick[:, None].expand(b, r, 1)).flatten()  # [b * r]
        better = (column > best).nonzero()[:, 0]
        for start in range(0, len(better), len(buffer)):
            some = better[start : start + len(buffer)]  # [m]
            old, new = best[some][:, None], column[some][:, None]
            # What was left to gain above the old coverage, and is not above the new one.
            added = torch.index_select(rows, 0, some, out=buffer[: len(some)])  # [m, p]
            torch.minimum(torch.maximum(added, old, out=added), new, out=added)
            if b == 1:
                gain -= added.sum(0) - old.sum()
            else:
                own = (some // r == image).to(gain.dtype)  # [b, m]
                gain -= own @ added - own @ old
        best = torch.maximum(best, column)
    return chosen
