"""Splicing a block: fewer tokens between its attention and its MLP, and no forward copied.

A transformer block is x = x + branch1(x); x = x + branch2(x). Three hooks reduce in between:

    the first module of branch2   a pre-hook: reduce x to m tokens, remember them, hand them on
    the last module of branch2    a hook: remember its output y [b, m, c], return a view of n tokens,
                                  so that the block's own addition fits
    the block                     a hook: return reduced + y; what the block itself added is ignored

Two more, around the attention, enter the tap where evidence or a bias is needed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenzoo.errors import AttachError
from tokenzoo.evidence import Evidence, SeenAttention
from tokenzoo.interfaces import Adapter, BlockPath
from tokenzoo.reduce import reduce_site
from tokenzoo.runtime import passes
from tokenzoo.runtime.passes import Pass
from tokenzoo.runtime.tap import Tap
from tokenzoo.tokens import Tokens

LOST = (
    "the tokens that reached {where} do not carry the state of their pass. Usual causes: gradient "
    "checkpointing with use_reentrant=True (use use_reentrant=False); a hook or wrapper of your own that "
    "returns a new tensor between the blocks; blocks on two devices; features passed to forward_head that "
    "are not the ones that forward_features returned"
)


class Box(threading.local):
    """What the hooks of one block tell each other while it runs; each run of the block overwrites it."""

    state: Pass | None = None
    tap: Tap | None = None
    reduced: Tensor | None = None
    branch: Tensor | None = None
    length: int = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Box:
        """A copy of a model is not in the middle of a pass."""
        return Box()

    def __reduce__(self) -> tuple[type[Box], tuple[()]]:
        """Neither is an unpickled one."""
        return Box, ()


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
        proportional: whether log mass is added to the logits.
    """

    def __init__(
        self,
        index: int,
        path: BlockPath,
        adapter: Adapter,
        *,
        start: Callable[[Tensor], Pass] | None,
        finish: Callable[[Pass], None] | None,
        proportional: bool,
    ) -> None:
        self.index = index
        self.path = path
        self.adapter = adapter
        self.start = start
        self.finish = finish
        self.proportional = proportional
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
            block.register_forward_hook(self.leave),
        ]

    def enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the state off the block's input."""
        del block
        extra = [*args[1:], *kwargs.values()]
        if any(isinstance(value, Tensor) or value is True for value in extra):
            raise AttachError(
                f"{self.path.name} was called with an attention mask; a mask is made for all tokens, and "
                "fewer are there: call the model without one, or detach first"
            )
        x = args[0]
        if not torch.compiler.is_compiling() and _open.tap is not None:
            _open.tap.close()  # torch calls no hook at all after a KeyboardInterrupt
            _open.tap = None
        state = passes.of(x)
        if state is None and self.start is not None:
            state = self.start(x)
        if state is None:
            raise AttachError(LOST.format(where=self.path.name))
        self.box.state = state
        self.box.tap = self.box.reduced = self.box.branch = None

    def open_tap(self, attention: nn.Module, args: tuple[Any, ...]) -> None:
        """Watch the attention, where something of it is needed."""
        del attention
        state = self._state()
        tokens = args[0].shape[1] - self.adapter.prefix
        site = state.step is not None and tokens > state.counts[self.index]
        wanted = site and state.watches
        bias = state.mass.log() if self.proportional and state.mass is not None else None
        if wanted or bias is not None:
            # An attention that runs a second time in one block is seen twice, which is an error.
            if self.box.tap is None:
                self.box.tap = Tap(self.adapter.prefix, bias)
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
            grid=self.adapter.grid(x.shape[1] - prefix) if state.mass is None else None,
            held=tokens.patches.held,
        )
        reduced, plan = reduce_site(state.step, tokens, evidence, keep)
        if state.trace:
            plan = plan if state.plan is None else state.plan.then(plan)
        # The mass is a count: it takes no gradient, and a mask that does costs the fused kernel.
        self.box.state = replace(
            state,
            mass=reduced.mass.detach(),
            held=reduced.held,
            plan=plan if state.trace else None,
        )
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
        reduced, branch = self.box.reduced, self.box.branch
        if reduced is not None and branch is not None:
            output = reduced + branch
        elif output is args[0]:
            output = output.view_as(output)  # never tag the caller's own tensor
        state = replace(state, fired=(*state.fired, output.shape[1] - self.adapter.prefix))
        self.box.state = self.box.tap = self.box.reduced = self.box.branch = None
        if self.finish is not None and not state.trial:
            self.finish(state)
        return passes.tag(output, state)

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
