"""Splicing a block: fewer tokens between its attention and its MLP, and no forward copied.

A transformer block is x = x + branch1(x); x = x + branch2(x). Three hooks reduce in between:

    the first module of branch2   a pre-hook: reduce x to m tokens, remember them, hand them on
    the last module of branch2    a hook: remember its output y [b, m, c], return a view of n tokens,
                                  so that the block's own addition fits
    the block                     a hook: return reduced + y; what the block itself added is ignored

Two more, around the attention, enter the tap where evidence, a bias or a position is needed. With
`restore`, the block's hook returns all tokens again, for whoever reads them in between, and lets the state
carry the few that the next block continues with.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenzoo.errors import AttachError
from tokenzoo.evidence import Evidence, SeenAttention
from tokenzoo.interfaces import Adapter, BlockPath
from tokenzoo.plan import Plan, take
from tokenzoo.reduce import reduce_site
from tokenzoo.runtime import passes
from tokenzoo.runtime.passes import Pass, PerThread, own
from tokenzoo.runtime.tap import Tap
from tokenzoo.tokens import Tokens

LOST = (
    "the tokens that reached {where} do not carry the state of their pass. Usual causes: gradient "
    "checkpointing with use_reentrant=True (use use_reentrant=False); a hook or wrapper of your own that "
    "returns a new tensor between the blocks; blocks on two devices; features passed to forward_head that "
    "are not the ones that forward_features returned"
)


@dataclass(frozen=True)
class Event:
    """One reduction of one pass, as `attach(..., on_reduce=f)` is told it.

    Attributes:
        block: index of the block.
        plan: from the tokens before to those after, prefix included.
        before: tokens `[b, n, c]` with their masses.
        after: tokens `[b, m, c]` with their masses.
    """

    block: int
    plan: Plan
    before: Tokens
    after: Tokens


@dataclass(frozen=True)
class Options:
    """How the sites of an attachment behave, beside their recipe.

    Attributes:
        proportional: log mass is added to the logits.
        trace: the plans of a pass are composed.
        restore: features come back at full length.
        debug: every site looks at its values, and raises.
        on_reduce: is told each reduction.
    """

    proportional: bool = False
    trace: bool = False
    restore: bool = False
    debug: bool = False
    on_reduce: Callable[[Event], object] | None = None


class Box(PerThread):
    """What the hooks of one block tell each other while it runs; each run of the block overwrites it."""

    state: Pass | None = own("state")
    tap: Tap | None = own("tap")
    reduced: Tensor | None = own("reduced")
    branch: Tensor | None = own("branch")
    whole: Tensor | None = own("whole")
    length: int = own("length")

    def clear(self) -> None:
        """Forget the last run."""
        self.state = self.tap = self.reduced = self.branch = self.whole = None


class _Open(threading.local):
    """The tap that is entered in this thread. An interrupt (Ctrl-C) can leave one behind."""

    tap: Tap | None = None


_open = _Open()


class Site:
    """One block of an attached model.

    Args:
        index: of the block in the tower.
        path: names of its submodules.
        adapter: of its model.
        start: makes the state at the first spliced block from its input; None at later ones.
        finish: is told the state after the last block; None at earlier ones.
        options: of the attachment.
    """

    def __init__(
        self,
        index: int,
        path: BlockPath,
        adapter: Adapter,
        *,
        start: Callable[[Tensor], Pass] | None,
        finish: Callable[[Pass], None] | None,
        options: Options,
    ) -> None:
        self.index = index
        self.path = path
        self.adapter = adapter
        self.start = start
        self.finish = finish
        self.options = options
        self.box = Box()

    def install(self, model: nn.Module) -> list[Any]:
        """Put the hooks in place; returns their handles."""
        block = model.get_submodule(self.path.name)
        attention = block.get_submodule(self.path.attention)
        return [
            block.register_forward_pre_hook(self.enter, with_kwargs=True),
            attention.register_forward_pre_hook(self.open_tap),
            # always_call: an exception in the attention must not leave the mode entered.
            attention.register_forward_hook(self.close_tap, always_call=True),
            block.get_submodule(self.path.second).register_forward_pre_hook(self.reduce),
            block.get_submodule(self.path.last).register_forward_hook(self.spread),
            # First of all: whoever else hooks on to the block is to see its real output.
            block.register_forward_hook(self.leave, prepend=True),
        ]

    def enter(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Read the state off the block's input, and hand the block what fits the tokens that are left."""
        del block
        x = args[0]
        if not torch.compiler.is_compiling() and _open.tap is not None:
            _open.tap.close()  # torch calls no hook at all after a KeyboardInterrupt
            _open.tap = None
        state = passes.of(x)
        if state is None and self.start is not None:
            state = self.start(x)
        if state is None:
            raise AttachError(LOST.format(where=self.path.name))
        self.box.clear()
        if self.options.restore and not state.trial:
            self.box.whole = x
            if state.short is not None:
                x, state = state.short, replace(state, short=None)
        self.box.state = state
        extra, kwargs = self.adapter.follow(args[1:], kwargs, state.places)
        return (x, *extra), kwargs

    def open_tap(self, attention: nn.Module, args: tuple[Any, ...]) -> None:
        """Watch the attention, where something of it is needed."""
        del attention
        state = self._state()
        tokens = args[0].shape[1] - self.adapter.prefix
        site = state.step is not None and tokens > state.counts[self.index]
        wanted = (site and state.watches) or state.places is not None
        bias = None
        if self.options.proportional and state.mass is not None:
            bias = state.mass.log()
        if wanted or bias is not None:
            # An attention that runs a second time in one block is seen twice, which is an error.
            if self.box.tap is None:
                self.box.tap = Tap(self.adapter.prefix, bias, state.places)
            self.box.tap.__enter__()
            if not torch.compiler.is_compiling():
                _open.tap = self.box.tap

    def close_tap(self, attention: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Stop watching."""
        del attention, args, output
        if self.box.tap is not None:
            self.box.tap.close()
            if not torch.compiler.is_compiling():
                _open.tap = None

    def reduce(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Reduce what comes out of the first branch: the heart, at one site."""
        del module
        x = args[0]  # [b, prefix + n, c]
        state = self._state()
        prefix = self.adapter.prefix
        keep = state.counts[self.index]
        seen = self._seen()
        if state.step is None or x.shape[1] - prefix <= keep:
            return None
        if state.watches and seen is None:
            raise AttachError(
                f"{self.path.name}.{self.path.second} runs before {self.path.attention}: this block is not "
                "x + attention, x + MLP in the order that the adapter describes"
            )
        mass = state.mass
        if mass is None:
            mass = torch.ones(x.shape[:2], dtype=torch.float32, device=x.device)
        tokens = Tokens(x, mass, prefix, state.held)
        evidence = Evidence(
            tokens.patches.x,
            mass=tokens.patches.mass,
            attention=seen,
            prefix=prefix,
            grid=state.grid if state.mass is None else None,
            held=tokens.patches.held,
        )
        debug = self.options.debug and not state.trial
        if debug:
            check_finite(tokens, f"reach the reduction in {self.path.name}")
        reduced, plan = reduce_site(state.step, tokens, evidence, keep, check=debug)
        # The mass is a count: it takes no gradient, and a mask that does costs the fused kernel.
        mass = reduced.mass.detach()
        state = replace(state, mass=mass, held=reduced.held, places=self._places(state, plan))
        if not state.trial:
            if debug:
                check_finite(reduced, f"leave the reduction in {self.path.name}")
            if self.options.on_reduce is not None:
                self.options.on_reduce(Event(self.index, plan, tokens, reduced))
            if self.options.trace or self.options.restore:
                state = replace(state, plan=plan if state.plan is None else state.plan.then(plan))
        self.box.state = state
        self.box.reduced, self.box.length = reduced.x, x.shape[1]
        return (reduced.x, *args[1:])

    def spread(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Remember the second branch; return something of the length that the block's addition expects."""
        del module, args
        if self.box.reduced is None:
            return None
        self.box.branch = output
        return output[:, :1].expand(-1, self.box.length, -1)

    def leave(self, block: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Make the block's real output, and let it carry the state on."""
        del block
        state = self._state()
        reduced, branch, whole = self.box.reduced, self.box.branch, self.box.whole
        if reduced is not None and branch is not None:
            output = reduced + branch
        elif output is args[0]:
            output = output.view_as(output)  # never tag the caller's own tensor
        state = replace(state, fired=(*state.fired, output.shape[1] - self.adapter.prefix))
        if state.plan is not None and whole is not None:
            # A token that was dropped keeps the features with which it entered the block that dropped it.
            state, output = replace(state, short=output), state.plan.unmerge(output, whole)
        self.box.clear()
        if self.finish is not None and not state.trial:
            self.finish(state)
        return passes.tag(output, state)

    def _places(self, state: Pass, plan: Plan) -> Tensor | None:
        """Which of the first tokens each output of a plan stands for."""
        if not self.adapter.positional:
            return None
        index = plan.keep.clamp_min(0)
        return index if state.places is None else take(state.places, index)

    def _state(self) -> Pass:
        if self.box.state is None:
            raise AttachError(LOST.format(where=self.path.name))
        return self.box.state

    def _seen(self) -> SeenAttention | None:
        tap = self.box.tap
        if tap is None:
            return None
        if len(tap.seen) != 1:
            raise AttachError(
                f"{len(tap.seen)} fused attention calls were seen in "
                f"{self.path.name}.{self.path.attention}, and exactly one is needed. Is fused "
                "attention off? timm: set fused_attn = True on the attention modules, or "
                "timm.layers.set_fused_attn(True) before the model is made"
            )
        return tap.seen[0]


def check_finite(tokens: Tokens, where: str) -> None:
    """Raise if a feature is NaN or infinite; it waits for the device.

    Raises:
        AttachError: says which image and token, and how many.
    """
    if torch.compiler.is_compiling():
        raise AttachError(
            "debug=True looks at values, which cannot be compiled with fullgraph=True: attach without it"
        )
    bad = ~tokens.x.isfinite().all(-1)  # [b, n]
    if bool(bad.any()):
        image, token = (int(place) for place in bad.nonzero()[0])
        raise AttachError(
            f"{int(bad.sum())} tokens with NaN or infinite features {where}; the first is token {token} "
            f"of image {image}. Look at the weights, the input and, in half precision, at overflows"
        )
