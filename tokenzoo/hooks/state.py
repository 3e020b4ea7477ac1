"""The state of one pass through a model. It rides on the tensor that goes from block to block.

A holder on the model or on a block would be wrong under gradient checkpointing (blocks run again after
the pass), in two threads, and in a pass within a pass. The tensor is where the pass is.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokenzoo.evidence import ENTERED, PREVIOUS, Layer, layer_of
from tokenzoo.hooks.restoring import Removal, all_back, put_back, take_out
from tokenzoo.layouts import SizeBucket, TokenLayout
from tokenzoo.recipe import Step
from tokenzoo.token_map import TokenMap, take

# Evidence that only a tap on the attention can show.
FROM_ATTENTION = frozenset(
    {"keys", "queries", "values", "received_attention", "cls_attention", "attention"}
)

_TAG = "_tokenzoo_state"

LOST = (
    "the tokens that reached {where} do not carry the state of their pass. Usual causes: gradient "
    "checkpointing with use_reentrant=True (use use_reentrant=False); a hook or wrapper of your own that "
    "returns a new tensor between the blocks (so does register_full_backward_hook: take register_hook of "
    "the block's output); blocks on two devices; features passed to forward_head that are not those that "
    "forward_features returned"
)


@dataclass(frozen=True)
class PassSteps:
    """What a pass does: the same at all its blocks and for all its images.

    Attributes:
        block: the step inside the blocks; None: nothing is reduced there.
        features: the step after the last block, or None.
        projected: the step after the projector, or None.
        trial: whether this is the proof at attach time and not a pass.
        watches: whether the step inside the blocks needs something that only a tap on the attention shows.
        receives: whether it needs the attention that each token receives.
        watches_after: the same of the steps after the last block.
        keeps_evidence: whether the last block's evidence travels on, to the step after the projector.
        joins_frames: whether the step after the projector reads all frames of a video together.
        enters: whether the step inside the blocks reads what entered the block, or its restorer does.
        remembers: whether it reads what entered the block before.
    """

    block: Step | None = None
    features: Step | None = None
    projected: Step | None = None
    trial: bool = False
    watches: bool = False
    receives: bool = False
    watches_after: bool = False
    keeps_evidence: bool = False
    joins_frames: bool = False
    enters: bool = False
    remembers: bool = False

    @classmethod
    def of(
        cls,
        block: Step | None,
        features: Step | None = None,
        projected: Step | None = None,
        *,
        trial: bool = False,
    ) -> PassSteps:
        """The steps, with what they watch."""
        keeps = watches(projected)
        after = keeps or watches(features)
        receives = block is not None and "received_attention" in block.needs
        joins = joins_frames(projected)
        asked = layers(block)
        return cls(
            *(block, features, projected, trial, watches(block), receives, after, keeps, joins),
            enters=bool(asked & {ENTERED, PREVIOUS})
            or (block is not None and block.restorer is not None),
            remembers=PREVIOUS in asked,
        )

    @property
    def after(self) -> bool:
        """Whether there is something to do after the last block."""
        return self.features is not None or self.projected is not None


NO_STEPS = PassSteps()
NO_IMAGES = SizeBucket(0, 0)


@dataclass(frozen=True)
class ReductionState:
    """Where a pass stands, between two blocks.

    Attributes:
        steps: what it does.
        layout: where the tokens are, and per size of image what has become of them.
        fired: after each block so far, the tokens of an image of each bucket.
        restored: whether the tensor that carries this state has all first tokens again (`reduced_tokens`).
        frames: of each video of the pass, how many frames it had, and how many are left; (): all are there.
        finished: whether the last block has run.
        removals: the reductions whose tokens come back, in their order; (): none, or all are back.
        left: in a block in whose attention removed tokens take part: the state without these; None:
            elsewhere.
    """

    steps: PassSteps
    layout: TokenLayout
    fired: tuple[tuple[int, ...], ...] = ()
    restored: bool = False
    finished: bool = False
    frames: tuple[int, ...] = ()
    removals: tuple[Removal, ...] = ()
    left: ReductionState | None = None

    @property
    def bucket(self) -> SizeBucket:
        """Of a batch: its images, and what has become of them."""
        return self.layout.buckets[0] if self.layout.buckets else NO_IMAGES

    @property
    def mass(self) -> Tensor | None:
        """Of a batch: how many tokens each one stands for `[b, prefix + n]`; None: 1 each."""
        return self.bucket.mass

    def surplus(self, block: int) -> bool:
        """Whether some image has more tokens than are to be left after a block."""
        if self.left is not None:  # the others are removed already
            return self.left.surplus(block)
        if self.steps.block is None:
            return False
        for one in self.layout.buckets:  # noqa: SIM110 (any() takes longer; this runs twice a block)
            if one.tokens > one.counts[block]:
                return True
        return False

    @property
    def attending(self) -> tuple[Removal, ...]:
        """The reductions whose tokens take part in the attention of this block, and have gone before."""
        return () if self.left is None else self.left.removals[len(self.removals) :]

    def attended(self, x: Tensor, block: int) -> tuple[Tensor, ReductionState]:
        """What enters a block, with the removed tokens that take part in its attention.

        Args:
            x: the tokens that are left.
            block: index of the block.
        """
        if not self.removals or self.removals[-1].last < block:
            return x, self
        gone = sum(removal.last < block for removal in self.removals)  # the earlier ones
        back = self.removals[gone:]
        wide = replace(self, layout=back[0].layout, removals=self.removals[:gone], left=self)
        return put_back(x, self.layout, back), wide

    def of_left(self, x: Tensor) -> Tensor:
        """The tokens that are left, out of what enters a block."""
        return x if self.left is None else take_out(x, self.left.layout, self.attending)

    def all_back(self, x: Tensor) -> tuple[Tensor, ReductionState]:
        """All tokens, where a restorer gives the removed ones back, and the state with these."""
        if not self.removals:
            return x, self
        layout = all_back(self.layout, self.removals)
        x = put_back(x, self.layout, self.removals)
        return x, replace(self, layout=layout, removals=())

    @property
    def stopped(self) -> bool:
        """Whether there are blocks that have not run, in a pass over the blocks of a tower."""
        return bool(self.bucket.counts) and not self.finished


class PerThread:
    """Attributes of which each thread has its own, made by `thread_local`.

    A copy, and what is unpickled, starts without values.

    It holds a `threading.local` and is not a subclass of it: torch loses what compiled code writes to one.
    """

    def __init__(self) -> None:
        self.here = threading.local()

    def __deepcopy__(self, memo: dict[int, Any]) -> PerThread:
        return type(self)()

    def __reduce__(self) -> tuple[type[PerThread], tuple[()]]:
        return type(self), ()


def thread_local(name: str) -> Any:
    """An attribute of a `PerThread` by this name; None in a thread that has not set it."""

    def read(holder: PerThread) -> Any:
        return getattr(holder.here, name, None)

    def write(holder: PerThread, value: Any) -> None:
        setattr(holder.here, name, value)

    return property(read, write)


def watches(*steps: Step | None) -> bool:
    """Whether the parts of one of the steps need what only a tap shows; computed once, not in a pass."""
    return any(step is not None and bool(step.needs & FROM_ATTENTION) for step in steps)


def joins_frames(step: Step | None) -> bool:
    """Whether a step reads all frames of a video together."""
    return step is not None and "frames" in step.needs


def layers(*steps: Step | None) -> frozenset[Layer]:
    """Other layers whose evidence the steps need."""
    needs = frozenset[str]().union(*(step.needs for step in steps if step is not None))
    return frozenset(layer for layer in map(layer_of, needs) if layer is not None)


def get_state(x: Tensor) -> ReductionState | None:
    """The state that a tensor carries, or None."""
    return getattr(x, _TAG, None)


def set_state(x: Tensor, state: ReductionState) -> Tensor:
    """Let a tensor carry the state; returns the tensor."""
    setattr(x, _TAG, state)
    return x


def all_tokens(x: Tensor) -> Tensor:
    """What leaves a block, with all first tokens where the recipe brings the removed ones back after it.

    For what reads an inner block: it gets as many tokens as what reads the last one. They carry the state.
    """
    state = get_state(x)
    if state is None or state.restored or not state.removals:
        return x
    return set_state(*state.all_back(x))


def reduced_tokens(x: Tensor, state: ReductionState) -> Tensor:
    """The tokens that are left, out of those of a pass that may have been restored.

    They are read from the tensor that hooks between the blocks see, so what a hook writes there counts. All
    n rows of one token are equal until a hook changes some of them; the token moves by the mean of these
    changes, and each row gets the same share of its gradient. Rows of dropped tokens count no more. Where a
    restorer made the rows, those of the tokens that are left count alone.

    Args:
        x: `[b, n, c]`, all first tokens where `state.restored`.
        state: that it carries.

    Returns:
        `[b, m, c]`.
    """
    layout = state.layout
    if not state.restored:
        return x
    if state.removals:
        return take_out(x, layout, state.removals)
    parts = layout.begun().split(x)
    return layout.join(
        [_reduced(part, one.plan) for part, one in zip(parts, layout.buckets, strict=True)]
    )


def _reduced(x: Tensor, plan: TokenMap | None) -> Tensor:
    if plan is None:
        return x
    kept = take(x, plan.sources)  # [b, m, c]
    # The mean of the rows, so written that rows that are equal give exactly what they are.
    change = plan.sum(x - take(kept, plan.targets))  # [b, m, c]
    rows = plan.sum(torch.ones_like(plan.dst, dtype=torch.float32)).clamp_min(1)  # [b, m]
    return kept + change / rows.to(x.dtype)[..., None]


def restore_tokens(x: Tensor, whole: Tensor, layout: TokenLayout) -> Tensor:
    """All first tokens again, each with the features of the token that it is part of.

    A dropped token keeps the features with which it entered the block that dropped it.

    Args:
        x: the tokens that are left.
        whole: all tokens, before the block.
        layout: of the tokens that are left.
    """
    begun = layout.begun()
    parts = zip(layout.split(x), begun.split(whole), layout.buckets, strict=True)
    return begun.join(
        [part if one.plan is None else one.plan.unmerge(part, all_) for part, all_, one in parts]
    )
