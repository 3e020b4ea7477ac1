"""Splicing a block: fewer tokens between its attention and its MLP, and no forward copied.

A transformer block is x = x + branch1(x); x = x + branch2(x). Three hooks reduce in between:

    the first module of branch2   a pre-hook: reduce x to m tokens, remember them, pass them on
    the last module of branch2    a hook: remember its output y [b, m, c], return a view of n tokens
    the block                     a hook: return reduced + y; its own addition is ignored

Two more, around the attention, enter the tap where evidence, a bias or a position is needed. With
`restore`, the block's hook returns all tokens again, for whoever reads or changes them; the next block
takes its few from these. After the last block the hook also takes the step of the stage "features".

Gradient checkpointing may run a block's forward again without calling the block (transformers >= 5.21): the
hooks of the modules inside run alone, and the first of them finds the state on the tokens themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenzoo.adapter import Adapter, BlockPath
from tokenzoo.errors import AttachError
from tokenzoo.evidence import Layer
from tokenzoo.hooks import site_evidence
from tokenzoo.hooks.after_blocks import reduce_features
from tokenzoo.hooks.frames import FrameStep
from tokenzoo.hooks.graph_capture import refuse_graphs, refuse_symbols
from tokenzoo.hooks.hook_order import hook_first as hook_first
from tokenzoo.hooks.hook_order import put_first
from tokenzoo.hooks.hook_state import HookState
from tokenzoo.hooks.reduction import Options, Place, reduce_parts
from tokenzoo.hooks.restoring import remembering, with_entered
from tokenzoo.hooks.site_errors import REENTRANT, TUPLE, check_length
from tokenzoo.hooks.state import (
    LOST,
    NO_STEPS,
    ReductionState,
    get_state,
    reduced_tokens,
    restore_tokens,
    set_state,
)
from tokenzoo.hooks.tap import TAP_ATTR, Tap, sweep, unwatch


class Site:
    """One block of an attached model.

    Args:
        index: of the block in the tower.
        path: names of its submodules.
        adapter: of its model.
        start: makes the state at the first spliced block from its input; None at later ones.
        finish: receives the state after the last block; None at earlier ones.
        idle: whether nothing is to be reduced now; then tokens without a state are no error.
        options: of the attachment.
        names: layer names under which later steps ask for this block's evidence.
        frames: makes fewer frames of a video of what enters this block; None: there is no such step here.
    """

    def __init__(
        self,
        index: int,
        path: BlockPath,
        adapter: Adapter,
        *,
        start: Callable[[Tensor], ReductionState] | None,
        finish: Callable[[ReductionState], None] | None,
        idle: Callable[[], bool],
        options: Options,
        names: tuple[Layer, ...] = (),
        frames: FrameStep | None = None,
    ) -> None:
        self.index = index
        self.path = path
        self.adapter = adapter
        self.start = start
        self.finish = finish
        self.idle = idle
        self.options = options
        self.names = names
        self.frames = frames
        self.place = Place("block", index, path.name)
        self.run = HookState()
        self.leaving = 0  # the id of the block's hook, from `install`

    def install(self, model: nn.Module) -> list[Callable[[], Any]]:
        """Put the hooks in place; returns what takes them away."""
        block = model.get_submodule(self.path.name)
        attention = block.get_submodule(self.path.attention)
        # First of all: whoever else hooks on to the block is to see its real output.
        leaving = hook_first(block, self.leave)
        self.leaving = leaving.id
        handles = [
            leaving,
            block.register_forward_pre_hook(self.enter, with_kwargs=True),
            attention.register_forward_pre_hook(self.open_tap, with_kwargs=True),
            block.get_submodule(self.path.branch2_in).register_forward_pre_hook(self.reduce),
            block.get_submodule(self.path.branch2_out).register_forward_hook(self.spread),
        ]
        if self.path.branch1_in:
            first = block.get_submodule(self.path.branch1_in)
            handles.append(first.register_forward_pre_hook(self.begin))
        if not self.adapter.uses_attention_interface:
            # always_call: an exception in the attention must not leave the mode entered.
            handles.append(attention.register_forward_hook(self.close_tap, always_call=True))
        undo: list[Callable[[], Any]] = [handle.remove for handle in handles]
        if self.adapter.uses_attention_interface:
            setattr(attention, TAP_ATTR, self.run)
            undo.append(partial(unwatch, attention))
        return undo

    def running(self) -> bool:
        """Whether the block is being run, in this thread."""
        return self.run.state is not None

    def enter(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Read the state off the block's input, and hand the block what fits the tokens that are left."""
        put_first(block, self.leaving)
        x = args[0]
        refuse_symbols(x)
        sweep()  # torch calls no hook at all after a KeyboardInterrupt
        self.run.clear()
        state = get_state(x)
        if state is None and self.start is not None:
            state = self.start(x)
        if state is None:
            state = self._lost()
        if self.options.restore and not state.steps.trial:
            self.run.whole = x
            if state.restored:
                x, state = reduced_tokens(x, state), replace(state, restored=False)
        if self.frames is not None:
            x, state = self.frames(x, state)
        x, state = self._early(*state.attended(x, self.index))
        self.run.entered = x if state.steps.enters else None
        self.run.state, self.run.called = state, True
        self.run.learns = torch.is_grad_enabled()
        if self.path.branch1_in and get_state(x) is not state:
            x = set_state(x.view_as(x), state)  # never tag the caller's own tensor
        extra, kwargs = self.adapter.adapt_block_inputs(args[1:], kwargs, state.layout.places)
        return (x, *extra), kwargs

    def begin(self, first: nn.Module, args: tuple[Any, ...]) -> None:
        """Find the state where checkpointing runs the forward again without the block's own hooks."""
        del first
        state = self.run.state
        if self.run.called and state is not None:
            self.run.called = None
            works = state.steps.block is not None or state.steps.features is not None
            if works and self.run.learns and not torch.is_grad_enabled():
                raise AttachError(REENTRANT.format(where=self.path.name))
            return
        self.run.clear()
        self.run.state, self.run.entered = get_state(args[0]) or self._lost(), args[0]

    def open_tap(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Watch the attention, where something of it is needed."""
        del attention
        layout, steps = (state := self._state()).layout, state.steps
        places = None if layout.segmented else layout.places
        reduces = steps.watches and state.surplus(self.index)
        wanted = reduces or self._feeds_later_step(state) or self._ends_encoder(state)
        bias = None
        if layout.buckets and (self.options.proportional or layout.learns):
            x = args[0] if args else kwargs["hidden_states"]  # as transformers' layers name it
            bias = layout.log_mass(x.device)
            if bias is not None and not self.options.proportional:
                bias = bias - bias.detach()  # it is 0, and takes the gradient of the mass
        if wanted or places is not None or bias is not None:
            # An attention that runs twice in a block is seen twice, which is an error.
            if self.run.tap is None:
                packed = layout.segmented
                windows = self.adapter.windows(self.index, kwargs) if packed else None
                receives = reduces and steps.receives and windows is None
                self.run.tap = Tap(layout.prefix, bias, places, packed, receives)
                self.run.windows = windows
            if self.adapter.uses_attention_interface:
                return  # the attention asks for it
            self.run.tap.open()

    def close_tap(self, attention: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Stop watching."""
        del attention, args, output
        if self.run.tap is not None:
            self.run.tap.close()

    def reduce(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Reduce what comes out of the first branch: the heart, at one site."""
        x = args[0]  # [b, prefix + n * p, c], or a packed sequence [r, c]
        state = self._state()
        surplus, feeds = state.surplus(self.index), self._feeds_later_step(state)
        ends, remembered = self._ends_encoder(state), site_evidence.next_asks(state, self.index)
        check_length(x, state, self.path.name)
        site_evidence.check_calls(self.run.tap, state, self.path, self.adapter)
        if not (surplus or feeds or ends or remembered or state.left):
            self.run.tap = None
            return None
        if surplus:
            self.options.tick()
        parts = state.layout.split(x)
        evidence = site_evidence.shown_by(
            self.run, x, state, parts, self.index, self.path, module.training
        )
        # Queries, keys and values are not to be held while the second branch runs.
        self.run.tap = None
        entered = site_evidence.entered_by(self.run, state) if surplus or remembered else None
        state, parts, evidence = site_evidence.of_left(
            self.run, x, state, parts, evidence, surplus or feeds or ends
        )
        if entered is not None and surplus:
            evidence = with_entered(evidence, state.layout, entered)
        if state.steps.remembers:
            own = entered if remembered else None
            state = replace(state, layout=remembering(state.layout, own))
        if feeds:
            state = replace(state, layout=site_evidence.named(state.layout, evidence, self.names))
        step = state.steps.block
        if surplus and step is not None:
            self.run.length = state.layout.length(x)
            given = (parts, evidence, self.place, self.options, entered)
            state, left, evidence = reduce_parts(step, state, *given)
            self.run.reduced = state.layout.join(left)
            self.options.tick()
        self.run.state = state
        if ends:
            self.run.evidence = evidence
        return None if self.run.reduced is None else (self.run.reduced, *args[1:])

    def spread(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Remember the second branch; return something of the length that the block adds."""
        del module, args
        if self.run.reduced is None:
            return None
        self.run.branch = output
        return self._state().layout.spread(output, self.run.length)

    def leave(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Make the block's real output, and let it carry the state on."""
        if isinstance(output, tuple):
            raise AttachError(TUPLE.format(where=self.path.name))
        state = self._state()
        short, branch, whole = self.run.reduced, self.run.branch, self.run.whole
        if short is not None and branch is not None:
            scale = getattr(block, self.path.branch2_scale) if self.path.branch2_scale else None
            output = short + (branch if scale is None else scale * branch)
        elif output is args[0]:
            output = output.view_as(output)  # never tag the caller's own tensor
        fired = (*state.fired, state.layout.counted(output))
        ends = self.finish is not None and not state.steps.trial
        state = replace(state, fired=fired, restored=False, finished=ends)
        if ends:
            output, state = state.all_back(output)
            place, evidence = Place("features", self.index, self.path.name), self.run.evidence
            output, state = reduce_features(output, state, evidence, place, self.options)
        if whole is not None and state.removals:
            output, state = state.all_back(output)[0], replace(state, restored=True)
        elif whole is not None and any(one.plan is not None for one in state.layout.buckets):
            output = restore_tokens(output, whole, state.layout)
            state = replace(state, restored=True)
        self.run.clear()
        if self.finish is not None and ends:
            self.finish(state)
        return set_state(output, state)

    def _early(self, x: Tensor, state: ReductionState) -> tuple[Tensor, ReductionState]:
        """Reduce what enters the block, where the removed tokens take part in no attention of it."""
        step, layout = state.steps.block, state.layout
        if step is None or step.attended or not state.surplus(self.index):
            return x, state
        self.options.tick()
        parts = layout.split(x)
        evidence = site_evidence.shown_by(self.run, x, state, parts, self.index, self.path)
        evidence = with_entered(evidence, layout, parts)
        state = replace(state, layout=remembering(layout, None))
        given = (parts, evidence, self.place, self.options, parts)
        state, left, _ = reduce_parts(step, state, *given)
        self.options.tick()
        return state.layout.join(left), state

    def _feeds_later_step(self, state: ReductionState) -> bool:
        """Whether a step after the last block needs this block's evidence under another name."""
        return bool(self.names) and state.steps.after

    def _ends_encoder(self, state: ReductionState) -> bool:
        """Whether this is the last block, and a step after it needs its attention."""
        return self.finish is not None and state.steps.watches_after

    def _lost(self) -> ReductionState:
        """The state of tokens that carry none: an error, unless there is nothing to do anyway."""
        if self.idle():
            return ReductionState(NO_STEPS, self.adapter.layout_class(()))
        raise AttachError(LOST.format(where=self.path.name))

    def _state(self) -> ReductionState:
        if self.run.state is None:
            refuse_graphs(self.path.name)
            raise AttachError(LOST.format(where=self.path.name))
        return self.run.state
