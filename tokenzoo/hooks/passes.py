"""The passes of an attached model: what each is to do when it begins, and what the last one did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenzoo.adapter import Adapter
from tokenzoo.budget import TokenBudget
from tokenzoo.errors import AttachError
from tokenzoo.evidence import Layer
from tokenzoo.hooks.after_blocks import pool_frames, reduce_projected
from tokenzoo.hooks.budgets import Budgets, block_of
from tokenzoo.hooks.frames import FrameStep, merge_frames
from tokenzoo.hooks.graph_capture import refuse_jit
from tokenzoo.hooks.reduction import Options, Place
from tokenzoo.hooks.state import (
    NO_STEPS,
    PassSteps,
    PerThread,
    ReductionState,
    get_state,
    layers,
    set_state,
    thread_local,
)
from tokenzoo.kernels.choice import transformed
from tokenzoo.layouts import SizeBucket
from tokenzoo.recipe import Recipe, Stage, Step


class LastPass(PerThread):
    """The last pass of this thread, and the one that is on its way from the tower to the projector."""

    state: ReductionState | None = thread_local("state")
    began: bool | None = thread_local("began")
    passing: ReductionState | None = thread_local("passing")
    transformed: bool | None = thread_local("transformed")
    prompts: tuple[int, ...] | None = thread_local("prompts")


class Passes:
    """The passes of one attachment.

    Args:
        recipe: that is attached.
        adapter: of the model.
        options: of the attachment.
        active: whether a pass would reduce now.
        prepare: called before each pass.
    """

    def __init__(
        self,
        recipe: Recipe,
        adapter: Adapter,
        options: Options,
        active: Callable[[], bool],
        prepare: Callable[[], None],
    ) -> None:
        self.recipe = recipe
        self.adapter = adapter
        self.options = options
        self.active = active
        self.prepare = prepare
        stages = (Stage.BLOCK, Stage.FEATURES, Stage.PROJECTED)
        self.steps = PassSteps.of(*(recipe.step_at(stage) for stage in stages))
        projected = self.steps.projected
        self.reads_text = projected is not None and "text" in projected.needs
        self.small = recipe.step_at(Stage.IMAGE) is not None
        self.depth = len(adapter.blocks())
        # By block, layer names under which later steps ask for its evidence.
        self.named: dict[int, tuple[Layer, ...]] = {}
        for layer in sorted(layers(self.steps.features, self.steps.projected), key=str):
            index = adapter.layer(layer)
            if index is not None:
                self.named[index] = (*self.named.get(index, ()), layer)
        self.budgets = Budgets(recipe, adapter)
        self.last = LastPass()

    def budget(self, tokens: int, frames: int = 1) -> TokenBudget:
        """What is planned for an image, or a frame of a video, of so many patch tokens."""
        return self.budgets.of(tokens, frames)

    def frames_of(self, index: int) -> FrameStep | None:
        """What makes fewer frames of a video before a block; None: nothing does."""
        step = next((step for step in self.budgets.frames if block_of(step) == index), None)
        return None if step is None else partial(self._merge_frames, step)

    def _merge_frames(
        self, step: Step, x: Tensor, state: ReductionState
    ) -> tuple[Tensor, ReductionState]:
        if state.steps.trial or state.steps is NO_STEPS:
            return x, state
        frames = max(self._videos_of(state)(x.shape[0]), default=1)
        if frames == 1:
            return x, state
        block = block_of(step)
        before = state.frames[0] if state.frames else frames
        left = dict(self.budget(state.bucket.first, before).fewer)[block]
        if left == frames:
            return x, state
        videos = self._videos_of(state)(x.shape[0])
        place = Place("frames", block, self.adapter.blocks()[block].name)
        return merge_frames(x, state, step, videos, left, place, self.options)

    def sites(self) -> range:
        """Indices of the blocks that are spliced: all, or the last, or none."""
        if self.steps.block is not None or self.small:
            return range(self.depth)
        alone = self.steps.features is not None or self.steps.keeps_evidence or bool(self.named)
        first = self.depth - 1 if alone else self.depth
        frames = map(block_of, self.budgets.frames)
        return range(min([first, *self.named, *frames]), self.depth)

    def idle(self) -> bool:
        """Whether nothing is to be reduced now."""
        return not self.active()

    def wanted(self, tokens: int) -> int:
        """Patch tokens of an image that is to be shrunk from so many."""
        if not self.active():
            return tokens
        refuse_jit()
        return self.budget(tokens).entering

    def before(self, model: nn.Module, args: Any) -> None:
        """A pre-hook of the whole model."""
        del model, args
        if self.active():
            refuse_jit()
        self.prepare()

    def begin_at(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        """A pre-hook of the first block, where that is not spliced."""
        del block, args
        self._begin()

    def enter(self, x: Tensor) -> ReductionState:
        """The state of a pass whose tokens `[b, n, c]`, or packed `[r, c]`, enter the first block.

        Raises:
            AttachError: they are not the prefix tokens and the patches of the images.
        """
        self._begin()
        adapter = self.adapter
        length = adapter.layout_class.length(x)
        found = length - adapter.prefix
        patches = adapter.entering(found)
        if patches != found or found < 1:
            raise AttachError(_unknown(length, adapter.prefix, patches))
        state = self._start(x)
        if state.layout.owned:
            # On the tensor that the tower has made: a block that is run again finds it there.
            set_state(x, state)
        return state

    def finish(self, state: ReductionState) -> None:
        """After the last block: what happened must be what was planned."""
        if self.steps.projected is not None:
            self.last.passing = state
        for i, one in enumerate(state.layout.buckets):
            fired = tuple(counts[i] for counts in state.fired)
            if one.counts and fired != one.counts[-len(self.sites()) :]:
                raise AttachError(
                    f"{one.counts} patch tokens were planned after the blocks, and there were {fired}: a "
                    "block was skipped, run twice or replaced after the recipe was attached; detach, and "
                    "attach again"
                )
        self._keep(state)

    def project(self, projector: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """A hook of the projector: the step of the stage "projected", on what it makes."""
        del projector
        passing, self.last.passing = self.last.passing, None
        if self.steps.projected is None or not self.active():
            return None
        adapter = self.adapter
        owned = adapter.layout_class.owned
        state = get_state(args[0]) if owned else passing
        if state is None:
            shape = (adapter.prefix, adapter.projected_prefix, adapter.group)
            given = adapter.layout_class.before_projector(args[0], output, *shape)
            state = self._start(given)
        place = Place("projected", self.depth - 1, adapter.projector)
        reaching, options = adapter.projected_prefix, self.options
        text = partial(adapter.text, "projected") if self.reads_text else None
        videos = None
        if self.steps.joins_frames:
            videos = self._videos_of(state)
            output, state = pool_frames(output, state, adapter.pool_frames, self.budget)
        output, state = reduce_projected(output, state, reaching, place, options, text, videos)
        if self.steps.joins_frames:
            adapter.note_videos(state.layout)
        if owned:  # the tower hands it on as its last hidden state
            set_state(args[0], state)
        self._keep(state)
        return output

    def _videos_of(self, state: ReductionState) -> Callable[[int], Sequence[int]]:
        """Frames of each video that are left, by the number of rows."""
        if not state.frames:
            return self.adapter.videos
        left = state.frames[1]
        return lambda rows: (left,) * (rows // left)

    def check_outside(self) -> None:
        """Raise if the last pass ran inside a transform of torch.func."""
        if self.last.transformed:
            raise AttachError(
                "the last forward pass ran inside a transform of torch.func (vmap, grad, jacrev), and its "
                "tensors are valid only inside it: attached.counts is available; for masses and records "
                "run the model once without a transform"
            )

    def _begin(self) -> None:
        """Forget the last pass: one that stops before the last block must not show another's counts."""
        # Gradient checkpointing runs the first block again in the backward pass, which is no new pass.
        task: Any = torch._C._current_graph_task_id  # pyright: ignore[reportPrivateUsage]
        again = not torch.compiler.is_compiling() and task() != -1
        if not again and not _traced():
            self.last.state, self.last.began = None, True

    def _start(self, x: Tensor) -> ReductionState:
        """The state before the first block: how many tokens there are says how many there will be."""
        self.prepare()
        layout = self.adapter.layout(x)
        reduces = self.active() and not self.small
        if self.active():
            refuse_jit()
        frames = (
            max(self.adapter.videos(x.shape[0]), default=1)
            if self.budgets.frames and reduces
            else 1
        )
        plan = partial(self._planned, frames=frames) if reduces else self._whole
        buckets = [plan(one) for one in layout.buckets]
        return ReductionState(self.steps if reduces else NO_STEPS, layout.with_buckets(buckets))

    def _planned(self, one: SizeBucket, frames: int) -> SizeBucket:
        budget = self.budget(one.first, frames)
        counts = {"counts": budget.blocks, "features": budget.features}
        return replace(one, **counts, projected=budget.projected)

    def _whole(self, one: SizeBucket) -> SizeBucket:
        return replace(one, counts=(one.first,) * self.depth)

    def _keep(self, state: ReductionState) -> None:
        if _traced():
            return
        self.last.transformed = transformed()
        layout = state.layout
        if self.last.transformed:
            # What torch.vmap stacks has a meaning inside of it only.
            layout = layout.begun().with_buckets(
                replace(
                    one,
                    mass=None,
                    held=None,
                    places=None,
                    plan=None,
                    inside=None,
                    evidence=None,
                    layers=(),
                )
                for one in layout.buckets
            )
        elif layout.learns or any(one.layers or one.evidence for one in layout.buckets):
            layout = layout.with_buckets(
                replace(one, mass=_stopped(one.mass), evidence=None, layers=())
                for one in layout.buckets
            )
        self.last.state = replace(state, layout=layout)


def _stopped(mass: Tensor | None) -> Tensor | None:
    """A mass without its gradient."""
    return None if mass is None else mass.detach()


def _unknown(tokens: int, prefix: int, patches: int) -> str:
    """What to say of a pass whose tokens are not prefix tokens and patches."""
    more = tokens - prefix - patches
    said = (
        f"{tokens} tokens enter the first block: {patches} patches of the image, and {tokens - patches} "
        f"others where {prefix} prefix tokens (CLS, registers) are known. "
    )
    if more < 0:
        return f"{said}Something dropped {-more} patches before the blocks, which is not supported"
    return (
        f"{said}If the {more} more (prompts) come before the patches, declare them: attach(..., "
        f"prefix={prefix + more}). After the patches, or between them, they cannot be told from patches"
    )


def _traced() -> bool:
    """Whether the pass is written down, by torch.export or torch.jit, and has no values to look at."""
    # is_exporting() is True in what torch 2.11 compiles, too.
    exported: bool = torch.compiler._is_exporting_flag  # pyright: ignore[reportPrivateUsage]
    return exported or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
