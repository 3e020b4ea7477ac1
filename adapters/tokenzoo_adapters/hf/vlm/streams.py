"""Features of inner blocks that the language model reads too (deepstack), for the tokens that are left.

A tower hands what some of its blocks return through mergers of their own, and the language model adds that
to its first layers. At such a block there may be more tokens than at the end: what has been merged since
then gets the mean of its members by their mass at that block, what has been dropped is dropped. So each
stream has a row for each token that is left, in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenzoo.hooks import all_tokens, get_state
from tokenzoo.layouts import PackedLayout, SizeBucket, TokenLayout
from tokenzoo.layouts.base import masses
from tokenzoo.token_map import TokenMap
from tokenzoo.tokens import full_precision

_LEFT = "_tokenzoo_left"


@dataclass(frozen=True)
class ExtraStream:
    """Features of inner blocks of the tower, which the language model adds to its first layers.

    Attributes:
        name: the field of the tower's output that has them, one tensor `[t, c']` for each of `blocks`.
        blocks: the entry of the vision config that lists the blocks; an attribute of the tower, too.
        heads: the list of modules in the tower that they leave through, one for each of `blocks`.
    """

    name: str
    blocks: str
    heads: str


DEEPSTACK = ExtraStream("deepstack_features", "deepstack_visual_indexes", "deepstack_merger_list")


def whole(head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """A pre-hook of a head: it reads all tokens where the recipe brings the removed ones back."""
    del head
    x = all_tokens(args[0])
    return None if x is args[0] else (x, *args[1:])


def mark(head: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    """A hook of a head: its rows know which tokens were left at their block."""
    del head
    state = get_state(args[0])
    layout: TokenLayout | None = None
    if state is not None and state.layout.buckets:
        # Without what the blocks have shown: it would be held as long as the rows are.
        bare = (replace(one, evidence=None, layers=()) for one in state.layout.buckets)
        layout = state.layout.with_buckets(bare)
    setattr(output, _LEFT, layout)


def is_stream(value: object) -> bool:
    """Whether a value in the output of a tower is a list of what its heads returned."""
    rows = cast("list[Any]", value if isinstance(value, list | tuple) else [])
    return bool(rows) and all(hasattr(one, _LEFT) for one in rows)


def carried(rows: Tensor, end: TokenLayout) -> Tensor:
    """The rows of a stream for the tokens that are left at the end, in their order.

    Args:
        rows: `[t, c']` of the tokens at its block, marked by `mark`.
        end: the layout of what left the tower and the projector, with plans.

    Returns:
        `[m, c']`.
    """
    begin: TokenLayout = getattr(rows, _LEFT, None) or end.begun()
    if isinstance(begin, PackedLayout) and isinstance(end, PackedLayout) and end.videos:
        begin = begin.by_video(end.videos)
    begin, end = begin.projected(0), end.projected(0)
    parts = zip(begin.split(rows), begin.buckets, end.buckets, strict=True)
    return end.join([_joined(*each) for each in parts])


def _joined(x: Tensor, begin: SizeBucket, end: SizeBucket) -> Tensor:
    """Rows `[b, n, c']` of the images of a size, joined as their tokens were: `[b, m, c']`."""
    if begin.tokens == end.tokens:
        return x
    since = _since(begin, cast("TokenMap", end.plan), x.device)
    mass = masses(begin, x)
    # A share of exactly 1 where a token is what it was at the block.
    share = mass / since.unmerge(since.sum(mass), 1.0)
    return since.sum(full_precision(x) * share[..., None]).to(x.dtype)


def _since(begin: SizeBucket, plan: TokenMap, device: torch.device) -> TokenMap:
    """What became of the tokens of a block, from what became of the first tokens there and at the end."""
    keep, last = plan.keep.to(device), plan.dst.to(device)
    if begin.plan is None:
        return TokenMap(keep, last)
    # Whatever a token is made of stays together. Dropped tokens write to an extra column, which is cut off.
    slot = begin.plan.dst.to(device) % (begin.tokens + 1)
    moved = last.new_full((last.shape[0], begin.tokens + 1), -1).scatter(1, slot, last)
    return TokenMap(keep, moved[:, : begin.tokens])
