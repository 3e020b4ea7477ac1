"""Splicing a block: fewer tokens between its attention and its MLP, and no forward copied.

A transformer block is x = x + branch1(x); x = x + branch2(x). Three hooks reduce in between:

    the first module of branch2   a pre-hook: reduce x to m tokens, remember them, hand them on
    the last module of branch2    a hook: remember its output y [b, m, c], return a view of n tokens,
                                  so that the block's own addition fits
    the block                     a hook: return reduced + y; what the block itself added is ignored

Two more, around the attention, enter the tap where evidence, a bias or a position is needed. With
`restore`, the block's hook returns all tokens again, for whoever reads or changes them in between, and the
next block takes its few tokens from these. Behind the last block the hook also takes the step of the stage
"features", if there is one.

Gradient checkpointing may run a block's forward again without calling the block (transformers >= 5.21).
Then the hooks of the modules inside run alone: the first of them finds the state on the tokens themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tokenzoo.adapter import Adapter, BlockPath
from tokenzoo.attention import SeenAttention
from tokenzoo.errors import AttachError
from tokenzoo.evidence import Evidence, Layer
from tokenzoo.hooks import state as passes
from tokenzoo.hooks.graph_capture import refuse_graphs, refuse_symbols
from tokenzoo.hooks.reduction import (
    Options,
    Place,
    evidence_of,
    masses,
    reduced,
)
from tokenzoo.hooks.state import Pass, PerThread, own
from tokenzoo.hooks.tap import WATCH, Tap, sweep, unwatch

LOST = (
    "the tokens that reached {where} do not carry the state of their pass. Usual causes: gradient "
    "checkpointing with use_reentrant=True (use use_reentrant=False); a hook or wrapper of your own that "
    "returns a new tensor between the blocks (so does register_full_backward_hook: take register_hook of "
    "the block's output); blocks on two devices; features passed to forward_head that are not those that "
    "forward_features returned"
)

REENTRANT = (
    "{where} runs under gradient checkpointing with use_reentrant=True, where what it makes of fewer tokens"
    " would get no gradients: model.gradient_checkpointing_enable(dict(use_reentrant=False))"
)


class Box(PerThread):
    """What the hooks of one block tell each other while it runs; each run of the block overwrites it."""

    state: Pass | None = own("state")
    tap: Tap | None = own("tap")
    reduced: Tensor | None = own("reduced")
    branch: Tensor | None = own("branch")
    whole: Tensor | None = own("whole")
    length: int = own("length")
    evidence: Evidence | None = own("evidence")
    called: bool | None = own("called")
    learns: bool | None = own("learns")

    def clear(self) -> None:
        """Forget the last run."""
        self.state = self.tap = self.reduced = self.branch = self.whole = None
        self.evidence = self.called = None


class Site:
    """One block of an attached model.

    Args:
        index: of the block in the tower.
        path: names of its submodules.
        adapter: of its model.
        start: makes the state at the first spliced block from its input; None at later ones.
        finish: is told the state after the last block; None at earlier ones.
        idle: whether nothing is to be reduced now; then tokens without a state are no error.
        options: of the attachment.
        names: what the steps behind the last block call this one, if they need what it shows.
    """

    def __init__(
        self,
        index: int,
        path: BlockPath,
        adapter: Adapter,
        *,
        start: Callable[[Tensor], Pass] | None,
        finish: Callable[[Pass], None] | None,
        idle: Callable[[], bool],
        options: Options,
        names: tuple[Layer, ...] = (),
    ) -> None:
        self.index = index
        self.path = path
        self.adapter = adapter
        self.start = start
        self.finish = finish
        self.idle = idle
        self.options = options
        self.names = names
        self.box = Box()
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
            # always_call: an exception in the attention must not leave the mode entered.
            attention.register_forward_hook(self.close_tap, always_call=True),
            block.get_submodule(self.path.second).register_forward_pre_hook(self.reduce),
            block.get_submodule(self.path.last).register_forward_hook(self.spread),
        ]
        if self.path.first:
            first = block.get_submodule(self.path.first)
            handles.append(first.register_forward_pre_hook(self.begin))
        undo: list[Callable[[], Any]] = [handle.remove for handle in handles]
        if self.adapter.watched:
            setattr(attention, WATCH, self.box)
            undo.append(partial(unwatch, attention))
        return undo

    def running(self) -> bool:
        """Whether the block is being run, in this thread."""
        return self.box.state is not None

    def enter(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Read the state off the block's input, and hand the block what fits the tokens that are left."""
        put_first(block, self.leaving)
        x = args[0]
        refuse_symbols(x)
        sweep()  # torch calls no hook at all after a KeyboardInterrupt
        state = passes.of(x)
        if state is None and self.start is not None:
            state = self.start(x)
        if state is None:
            state = self._lost()
        self.box.clear()
        if self.options.restore and not state.trial:
            self.box.whole = x
            if state.restored:
                x, state = passes.few(x, state), replace(state, restored=False)
        self.box.state, self.box.called = state, True
        self.box.learns = torch.is_grad_enabled()
        if self.path.first and passes.of(x) is not state:
            x = passes.tag(x.view_as(x), state)  # a view: never tag the caller's own tensor
        extra, kwargs = self.adapter.follow(args[1:], kwargs, state.places)
        return (x, *extra), kwargs

    def begin(self, first: nn.Module, args: tuple[Any, ...]) -> None:
        """Find the state where checkpointing runs the forward again without the block's own hooks."""
        del first
        state = self.box.state
        if self.box.called and state is not None:
            self.box.called = None
            works = state.step is not None or state.after is not None
            if works and self.box.learns and not torch.is_grad_enabled():
                raise AttachError(REENTRANT.format(where=self.path.name))
            return
        self.box.clear()
        self.box.state = passes.of(args[0]) or self._lost()

    def open_tap(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Watch the attention, where something of it is needed."""
        del attention
        state = self._state()
        x = args[0] if args else kwargs["hidden_states"]  # as transformers' layers name it
        tokens = x.shape[1] - self.adapter.prefix
        site = state.step is not None and tokens > state.counts[self.index]
        wanted = (site and state.watches) or state.places is not None
        if self.finish is not None:
            wanted = wanted or state.watches_after
        wanted = wanted or self._shows(state)
        bias = None
        if self.options.proportional and state.mass is not None:
            bias = masses(x, state).log()
        if wanted or bias is not None:
            # An attention that runs a second time in one block is seen twice, which is an error.
            if self.box.tap is None:
                self.box.tap = Tap(self.adapter.prefix, bias, state.places)
            if self.adapter.watched:
                return  # the attention asks for it
            self.box.tap.open()

    def close_tap(self, attention: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Stop watching."""
        del attention, args, output
        if self.box.tap is not None and not self.adapter.watched:
            self.box.tap.close()

    def reduce(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Reduce what comes out of the first branch: the heart, at one site."""
        del module
        x = args[0]  # [b, prefix + n, c]
        state = self._state()
        prefix = self.adapter.prefix
        seen = self._seen()
        self.box.tap = (
            None  # queries, keys and values are not to be held while the second branch runs
        )
        if self.finish is not None and state.watches_after:
            self.box.evidence = evidence_of(x, state, seen, prefix)
        if self._shows(state):
            shown = evidence_of(x, state, seen, prefix)
            state = state.shown_by(self.names, shown)
            self.box.state = state
        if state.step is None or x.shape[1] - prefix <= state.counts[self.index]:
            return None
        if state.watches and seen is None:
            raise AttachError(
                f"{self.path.name}.{self.path.second} runs before {self.path.attention}: this block is not "
                "x + attention, x + MLP in the order that the adapter describes"
            )
        self.options.tick()
        depth = self.index / len(state.counts)
        evidence = evidence_of(x, state, seen, prefix, depth)
        place = self._place("block")
        x_after, plan, state = reduced(
            state.step, state, x, evidence, state.counts[self.index], place, self.options
        )
        self.options.tick()
        if self.box.evidence is not None:
            self.box.evidence = self.box.evidence.through(plan)
        self.box.state = state
        self.box.reduced, self.box.length = x_after, x.shape[1]
        return (x_after, *args[1:])

    def spread(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Remember the second branch; return something of the length that the block's addition expects."""
        del module, args
        if self.box.reduced is None:
            return None
        self.box.branch = output
        return output[:, :1].expand(-1, self.box.length, -1)

    def leave(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Make the block's real output, and let it carry the state on."""
        del block
        if isinstance(output, tuple):
            raise AttachError(
                f"{self.path.name} returns a tuple, and its tokens alone are expected: an adapter of ours "
                "does not fit this version of the model's library"
            )
        state = self._state()
        short, branch, whole = self.box.reduced, self.box.branch, self.box.whole
        if short is not None and branch is not None:
            output = short + branch
        elif output is args[0]:
            output = output.view_as(output)  # never tag the caller's own tensor
        state = replace(state, fired=(*state.fired, output.shape[1] - self.adapter.prefix))
        if self.finish is not None and not state.trial:
            output, state = self._behind(output, state)
        if state.plan is not None and whole is not None:
            # A token that was dropped keeps the features with which it entered the block that dropped it.
            state, output = replace(state, restored=True), state.plan.unmerge(output, whole)
        self.box.clear()
        if self.finish is not None and not state.trial:
            self.finish(state)
        return passes.tag(output, state)

    def _behind(self, x: Tensor, state: Pass) -> tuple[Tensor, Pass]:
        """The step of the stage "features", on what leaves the last block."""
        prefix, evidence = self.adapter.prefix, self.box.evidence
        count = x.shape[1] - prefix
        step = state.after
        if evidence is None:
            evidence = evidence_of(x, state, None, prefix)
        evidence = evidence.renewed(x[:, prefix:], masses(x, state)[:, prefix:], dict(state.layers))
        if step is not None and count > state.features:
            place = self._place("features")
            self.options.tick()
            x, plan, state = reduced(step, state, x, evidence, state.features, place, self.options)
            self.options.tick()
            if state.keeps_evidence:
                evidence = evidence.through(plan)
        kept = evidence if state.keeps_evidence else None
        state = replace(state, evidence=kept, left=x.shape[1] - prefix)
        return x, state.behind_tower()

    def _shows(self, state: Pass) -> bool:
        """Whether a step behind the last block needs what this one shows."""
        return bool(self.names) and state.behind

    def _place(self, stage: str) -> Place:
        adapter = self.adapter
        return Place(stage, self.index, self.path.name, adapter.prefix, adapter.positional)

    def _lost(self) -> Pass:
        """The state of tokens that carry none: an error, unless there is nothing to do anyway."""
        if self.idle():
            return Pass(None, ())
        raise AttachError(LOST.format(where=self.path.name))

    def _state(self) -> Pass:
        if self.box.state is None:
            refuse_graphs(self.path.name)
            raise AttachError(LOST.format(where=self.path.name))
        return self.box.state

    def _seen(self) -> SeenAttention | None:
        tap = self.box.tap
        if tap is None:
            return None
        if len(tap.seen) != 1:
            raise AttachError(
                f"{len(tap.seen)} fused attention calls were seen in "
                f"{self.path.name}.{self.path.attention}, and exactly one is needed. "
                f"{self._reason(len(tap.seen))}"
            )
        return tap.seen[0]

    def _reason(self, calls: int) -> str:
        """Why so many calls of the attention were seen and not one, for a message."""
        if calls:
            return "This block attends more than once, and one attention a block is followed"
        if not self.adapter.watched:
            return (
                "Is fused attention off? timm: set fused_attn = True on the attention modules, or "
                "timm.layers.set_fused_attn(True) before the model is made"
            )
        if self._state().trial:
            return "Its forward does not call the attention function that the model's config names"
        return (
            "The attention implementation was changed while the recipe was attached: "
            "set_attn_implementation(...) takes our watch away, call it before attach"
        )


def hook_first(
    module: nn.Module, hook: Callable[..., Any], *, with_kwargs: bool = False
) -> RemovableHandle:
    """Register a forward hook before those that are there; see `register_forward_hook`."""
    handle = module.register_forward_hook(hook, with_kwargs=with_kwargs)
    put_first(module, handle.id)
    return handle


def put_first(module: nn.Module, key: int) -> None:
    """Let the forward hook of a handle (its id) run before the others, those with `prepend=True` too.

    Not by `prepend=True`: it leaves the keys in an order that torch 2.11 misreads when it compiles.
    """
    hooks: dict[int, Any] = cast("Any", module)._forward_hooks
    if torch.compiler.is_dynamo_compiling() or next(iter(hooks), key) == key:
        return
    for other, hook in list(hooks.items()):
        if other != key:
            del hooks[other]
            hooks[other] = hook
