"""What a site knows about its tokens: from its attention, and from what entered its block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from tokenzoo.adapter import Adapter, BlockPath
from tokenzoo.errors import AttachError
from tokenzoo.evidence import Evidence, Layer
from tokenzoo.hooks.hook_state import HookState
from tokenzoo.hooks.reduction import evidence_of
from tokenzoo.hooks.restoring import narrowed
from tokenzoo.hooks.site_errors import wrong_calls, wrong_order
from tokenzoo.hooks.state import ReductionState
from tokenzoo.hooks.tap import Tap
from tokenzoo.layouts import TokenLayout


def check_calls(tap: Tap | None, state: ReductionState, path: BlockPath, adapter: Adapter) -> None:
    """Raise if the attention was not seen as often as it must be, where it was watched.

    Raises:
        AttachError: says how often, and why.
    """
    if tap is None:
        return
    wrong = state.layout.check_calls(tap.seen, f"{path.name}.{path.attention}")
    if wrong:
        calls, trial = len(tap.seen), state.steps.trial
        raise AttachError(wrong_calls(wrong, calls, adapter, state.layout, trial))


def shown_by(
    run: HookState,
    x: Tensor,
    state: ReductionState,
    parts: list[Tensor],
    index: int,
    path: BlockPath,
    training: bool = False,
) -> list[Evidence]:
    """What a block shows about the tokens of each bucket.

    Args:
        run: of the block.
        x: all of its tokens.
        state: with their layout.
        parts: the tokens of each bucket.
        index: of the block.
        path: of the block.
        training: whether the block is in training mode.
    """
    layout, tap = state.layout, run.tap
    seen: list[Any] = [None] * len(parts)
    if tap is not None:
        seen = layout.attention(tap.seen, run.windows, x.device)
    elif state.steps.watches and state.surplus(index):
        raise wrong_order(path)
    triples = zip(parts, layout.buckets, seen, strict=True)
    return [
        evidence_of(part, one, own, layout.prefix, index / len(one.counts), training)
        for part, one, own in triples
    ]


def of_left(
    run: HookState,
    x: Tensor,
    state: ReductionState,
    parts: list[Tensor],
    evidence: list[Evidence],
    asked: bool,
) -> tuple[ReductionState, list[Tensor], list[Evidence]]:
    """Take out the removed tokens that took part in the attention of a block, if any did.

    Args:
        run: of the block, which notes the tokens that are left.
        x: all tokens of the block.
        state: with their layout.
        parts: the tokens of each bucket.
        evidence: about them.
        asked: whether the evidence will be read.

    Returns:
        The state, the tokens and the evidence of those that are left.
    """
    if state.left is None:
        return state, parts, evidence
    run.reduced, run.length = state.of_left(x), state.layout.length(x)
    gone, state = state.attending, state.left
    parts = state.layout.split(run.reduced)
    if asked:
        evidence = narrowed(evidence, parts, state.layout, gone)
    return state, parts, evidence


def entered_by(run: HookState, state: ReductionState) -> list[Tensor] | None:
    """Of each bucket, the tokens that are left as they entered the block; None: no part reads them."""
    x = run.entered
    if x is None or not state.steps.enters:
        return None
    return (state.left or state).layout.split(state.of_left(x))


def next_asks(state: ReductionState, index: int) -> bool:
    """Whether the block after this one needs what entered this one."""
    if not state.steps.remembers:
        return False
    counts = [one.counts[index : index + 2] for one in state.layout.buckets]
    return any(len(two) == 2 and two[1] < two[0] for two in counts)


def named(
    layout: TokenLayout, evidence: Sequence[Evidence], names: tuple[Layer, ...]
) -> TokenLayout:
    """The layout whose buckets carry this evidence on, under the names by which later steps ask for it."""
    pairs = zip(layout.buckets, evidence, strict=True)
    return layout.with_buckets(
        replace(one, layers=(*one.layers, *((name, own) for name in names))) for one, own in pairs
    )
