"""Putting a recipe on a model, after a proof that it fits, and taking it off."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenzoo.adapter import Adapter, Attachment, BlockPath
from tokenzoo.hooks import regional_compile, sharding, verify
from tokenzoo.hooks.graph_capture import Graphs, refuse_script
from tokenzoo.hooks.passes import Passes
from tokenzoo.hooks.reduction import Options
from tokenzoo.hooks.site import Site
from tokenzoo.hooks.snapshot import snapshot
from tokenzoo.hooks.state import FROM_ATTENTION, get_state, set_state
from tokenzoo.hooks.tap import sweep
from tokenzoo.hooks.undo import undo_all

MARK = "_tokenzoo_attached"
SCRIPT = "__prepare_scriptable__"
"""What `torch.jit.script` calls first, of each module that it is given."""


class Installer:
    """The hooks of one attachment.

    Args:
        model: that is attached to.
        adapter: of the model.
        options: of the attachment.
        proportional: whether what pools the tokens gets log mass.

    Attributes:
        undo: what takes everything off, in the order in which it was put on.
    """

    def __init__(
        self, model: nn.Module, adapter: Adapter, options: Options, proportional: bool
    ) -> None:
        self.model = model
        self.adapter = adapter
        self.options = options
        self.proportional = proportional
        self.undo: list[Callable[[], Any]] = []
        # The spliced blocks, and the classes of them and of the model: fully_shard changes those.
        self.blocks: list[nn.Module] = []
        self.kinds: list[type] = []

    def install(self, attached: Attachment, passes: Passes, *, prove: bool = True) -> None:
        """Prove and install everything, or raise and leave the model as it was.

        Args:
            attached: the attachment.
            passes: its passes.
            prove: whether to run blocks on random tokens; False: nothing is run.
        """
        adapter, model = self.adapter, self.model
        _forget_compiled()
        put_back = snapshot(model)
        try:
            if len(passes.sites()):
                self._splice(passes, prove)
            if passes.steps.projected is not None:
                projector = model.get_submodule(adapter.projector)
                self.undo.append(projector.register_forward_hook(passes.project).remove)
            # Before what an adapter makes of the arguments.
            self.undo.append(model.register_forward_pre_hook(passes.before).remove)
            undo = adapter.connect(attached)
            if undo is not None:
                self.undo.append(undo)
            setattr(model, SCRIPT, refuse_script)
            self.undo.append(partial(_allow_script, model))
            self.kinds = self._seen_kinds()
            setattr(model, MARK, attached)
        except BaseException:
            self.uninstall(attached)
            put_back()
            raise

    def uninstall(self, attached: Attachment) -> None:
        """Take everything off. Idempotent."""
        if self.undo:
            _forget_compiled()
        undo_all(self.undo)
        self.blocks.clear()
        sweep()
        if getattr(self.model, MARK, None) is attached:
            delattr(self.model, MARK)

    def carry(self) -> None:
        """Before each pass: let a model that was sharded since the last one hand the state on."""
        if torch.compiler.is_compiling():
            return
        kinds = self._seen_kinds()
        if kinds != self.kinds:
            self.kinds = kinds
            self.undo += sharding.carry(self.model)

    def _seen_kinds(self) -> list[type]:
        return [type(self.model), *map(type, self.blocks)]

    def _splice(self, passes: Passes, prove: bool) -> None:
        """Splice the blocks of the tower, and prove that they are what they seem to be."""
        adapter, model, sites = self.adapter, self.model, passes.sites()
        paths = adapter.blocks()
        tried = verify.trials(model, adapter, [(i, paths[i]) for i in sites if prove])
        undo = adapter.install(self.proportional)
        if undo is not None:
            self.undo.append(undo)
        for index in sites:
            site = self._site(index, paths[index], passes)
            self.undo += site.install(model)
            block = model.get_submodule(paths[index].name)
            if not self.blocks:
                graphs = Graphs(paths[index].name, site.running)
                self.undo += [handle.remove for handle in graphs.install(block)]
            self.blocks.append(block)
        if sites[0] > 0:  # a pass begins at the first block of the tower, spliced or not
            block = model.get_submodule(paths[0].name)
            self.undo.append(block.register_forward_pre_hook(passes.begin_at).remove)
        self.undo += regional_compile.watch(model, [paths[index] for index in sites])
        for name in adapter.passthrough_modules():
            handle = model.get_submodule(name).register_forward_hook(_pass_on)
            self.undo.append(handle.remove)
        if passes.small:
            self.undo.append(adapter.shrink(passes.wanted))
        steps = (passes.steps.block, passes.steps.features, passes.steps.projected)
        needs = frozenset[str]().union(*(step.needs for step in steps if step is not None))
        names = frozenset(need.partition("@")[0] for need in needs)
        verify.prove(model, adapter, tried, names & FROM_ATTENTION)

    def _site(self, index: int, path: BlockPath, passes: Passes) -> Site:
        sites = passes.sites()
        return Site(
            index,
            path,
            self.adapter,
            start=passes.enter if index == sites[0] else None,
            finish=passes.finish if index == sites[-1] else None,
            idle=passes.idle,
            options=self.options,
            names=passes.named.get(index, ()),
            frames=passes.frames_of(index),
        )


def _allow_script(model: nn.Module) -> None:
    vars(model).pop(SCRIPT, None)


def _pass_on(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """Let the state travel through a module that hands all tokens on."""
    del module
    state = get_state(args[0])
    return output if state is None or output is args[0] else set_state(output, state)


def _forget_compiled() -> None:
    """Have torch compile again what it has compiled, and from now on look whether there are other hooks.

    Without the first, a model that was compiled bare would run bare for ever, also as a copy that is
    compiled with a recipe on it. Without the second, of two models of one class, one bare and one attached,
    the attached one would run what was compiled for the bare one.
    """
    config: Any = sys.modules.get("torch._dynamo.config")
    if config is not None:
        config.skip_nnmodule_hook_guards = False
        torch.compiler.reset()
