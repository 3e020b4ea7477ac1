"""Attaching a recipe to a model, and taking it off again without a trace."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenzoo import plugins
from tokenzoo.budget import Budget
from tokenzoo.checks import check_choice, check_count, check_flag
from tokenzoo.errors import (
    AttachError,
    BadArgumentError,
    MissingEvidenceError,
    PluginError,
    UnsupportedModelError,
)
from tokenzoo.interfaces import Adapter, Assigner, walk
from tokenzoo.plan import Plan
from tokenzoo.recipe import Recipe, Stage
from tokenzoo.runtime import passes, proof
from tokenzoo.runtime.passes import Pass, PerThread, own
from tokenzoo.runtime.splice import Event, Options, Site

When = Literal["always", "eval", "train"]

_MARK = "_tokenzoo_attached"


class _Last(PerThread):
    """The last pass of this thread."""

    state: Pass | None = own("state")


class Attached:
    """A recipe on a model. Use it as a context manager, or call `detach()`.

    Attributes:
        model: the model, which is used as before.
        recipe: the parts and the numbers.
        adapter: what knows the model.
        options: `trace`, `restore`, `debug`, `on_reduce`.
        when: in which mode of the model it works: "always", "eval" or "train".
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, adapter: Adapter, *, options: Options, when: When
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.adapter = adapter
        self.options = options
        self.when: When = when
        self._step = recipe.step_at(Stage.BLOCK)
        self._watches = passes.watches(self._step)
        self._depth = len(adapter.blocks())
        self._undo: list[Callable[[], Any]] = []
        self._budgets: dict[int, Budget] = {}
        self._last = _Last()
        # As many entries as there are paused() blocks. No thread-local: a compiled model would not look.
        self._pauses: list[None] = []

    @property
    def active(self) -> bool:
        """Whether a pass would reduce: nothing is paused, and the model is in the right mode."""
        mode = self.when == "always" or self.model.training == (self.when == "train")
        return mode and not self._pauses

    @contextmanager
    def paused(self) -> Generator[None]:
        """Within the `with` block nothing is reduced, in any thread; nothing is detached either.

        A model under `torch.compile` is compiled once more for that; an exported one is what it was.
        """
        self._pauses.append(None)
        try:
            yield
        finally:
            self._pauses.pop()

    def plan(self, tokens: int | None = None) -> Budget:
        """The patch tokens after each block, for an image of so many (None: the model's own size)."""
        if tokens is None:
            tokens = self.adapter.tokens()
        if tokens is None:
            raise AttachError(
                "this model takes images of any size: say how many patch tokens, plan(196)"
            )
        return self._plan(check_count("tokens", tokens))

    def _plan(self, tokens: int) -> Budget:
        if tokens not in self._budgets:
            adapter = self.adapter
            self._budgets[tokens] = self.recipe.budget(
                tokens,
                self._depth,
                prefix=adapter.prefix,
                width=adapter.width,
                hidden=adapter.hidden,
            )
        return self._budgets[tokens]

    @property
    def counts(self) -> tuple[int, ...]:
        """Patch tokens after each block in the last pass of this thread.

        Raises:
            AttachError: there was none yet.
        """
        return self._pass().fired

    @property
    def mass(self) -> Tensor:
        """How many input tokens each token of the last pass stands for, `[b, n]`, prefix included."""
        state = self._pass()
        if state.mass is None:
            raise AttachError("nothing was reduced in the last pass: every token stands for itself")
        return state.mass

    @property
    def record(self) -> Plan:
        """From the first tokens to the last ones of the last pass; needs `attach(..., trace=True)`."""
        state = self._pass()
        if not self.options.trace:
            raise AttachError("the plans of a pass are kept with attach(..., trace=True)")
        if state.plan is None:
            raise AttachError("nothing was reduced in the last pass")
        return state.plan

    def summary(self, tokens: int | None = None) -> str:
        """What is attached to what, and what it does: lines of text.

        Args:
            tokens: patch tokens of an image; None: the model's own size.
        """
        step, plan = self._step, None
        if tokens is not None or self.adapter.tokens() is not None:
            plan = self.plan(tokens)
        state = "" if self._undo else " (detached)"
        chosen = {"when": self.when, "trace": self.options.trace, "restore": self.options.restore}
        chosen |= {"debug": self.options.debug, "on_reduce": self.options.on_reduce}
        standard = {**dict.fromkeys(chosen, False), "when": "always", "on_reduce": None}
        rows = [
            ("model", f"{type(self.model).__name__}, by {type(self.adapter).__name__}{state}"),
            *(("step", repr(step)) for step in self.recipe.steps),
            (
                "keep",
                str(self.recipe.keep if self.recipe.flops is None else plan and plan.features),
            ),
            ("flops", None if self.recipe.flops is None else str(self.recipe.flops)),
            ("attention", "proportional" if self.recipe.proportional_attention else None),
            ("needs", ", ".join(sorted(step.needs)) if step and step.needs else None),
            *((name, repr(value)) for name, value in chosen.items() if value != standard[name]),
        ]
        lines = [f"{name:<10}  {value}" for name, value in rows if value is not None]
        lines.append("image       any size: summary(tokens=196)" if plan is None else str(plan))
        if self._last.state is not None:
            lines.append(f"last pass   {', '.join(map(str, self._last.state.fired))}")
        return "\n".join(lines)

    def detach(self) -> None:
        """Take the recipe off; the model is the bare one again, bit for bit. Twice is once."""
        if self._undo:
            _forget_compiled()
        while self._undo:
            self._undo.pop()()
        if getattr(self.model, _MARK, None) is self:
            delattr(self.model, _MARK)

    def __enter__(self) -> Attached:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()

    def __repr__(self) -> str:
        state = "attached to" if self._undo else "detached from"
        return f"<{self.recipe!r} {state} {type(self.model).__name__}>"

    def _pass(self) -> Pass:
        if self._last.state is None:
            raise AttachError("the model has not run in this thread since the recipe was attached")
        return self._last.state

    def _start(self, x: Tensor) -> Pass:
        """The state before the first block: how many tokens there are says how many there will be."""
        tokens = x.shape[1] - self.adapter.prefix
        if self._step is None or not self.active:
            return Pass(None, (tokens,) * self._depth)
        counts, grid = self._plan(tokens).blocks, self.adapter.grid(tokens)
        return Pass(self._step, counts, grid=grid, watches=self._watches)

    def _wanted(self, tokens: int) -> int:
        """Patch tokens of an image that is to be shrunk from so many."""
        return self._plan(tokens).entering if self.active else tokens

    def _finish(self, state: Pass) -> None:
        """After the last block: what happened must be what was planned."""
        if state.fired != state.counts:
            raise AttachError(
                f"planned were {state.counts} patch tokens after the blocks, there were {state.fired}: a "
                "block was skipped, run twice or replaced after the recipe was attached; detach, and "
                "attach again"
            )
        # A traced pass has no values to look at. (is_exporting() is True in what torch 2.11 compiles, too.)
        if not torch.compiler._is_exporting_flag:  # pyright: ignore[reportPrivateUsage]
            self._last.state = state

    def _install(self) -> None:
        """Prove and install everything, or raise and leave the model as it was."""
        adapter, model = self.adapter, self.model
        paths = adapter.blocks()
        _forget_compiled()
        tried = proof.trials(model, adapter, paths)
        image = self.recipe.step_at(Stage.IMAGE)
        try:
            for index, path in enumerate(paths):
                site = Site(
                    index,
                    path,
                    adapter,
                    start=self._start if index == 0 else None,
                    finish=self._finish if index == len(paths) - 1 else None,
                    options=self.options,
                )
                self._undo += [handle.remove for handle in site.install(model)]
            for name in adapter.followers():
                handle = model.get_submodule(name).register_forward_hook(_follow)
                self._undo.append(handle.remove)
            undo = adapter.install(self.recipe.proportional_attention)
            if undo is not None:
                self._undo.append(undo)
            if image is not None:
                self._undo.append(adapter.shrink(self._wanted))
            proof.prove(model, adapter, tried, self.recipe.needs)
            setattr(model, _MARK, self)
        except BaseException:
            self.detach()
            raise


def _follow(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """Let the state travel through a module that hands all tokens on."""
    del module
    state = passes.of(args[0])
    return output if state is None or output is args[0] else passes.tag(output, state)


def attach(
    recipe: Recipe,
    model: Any,
    *,
    trace: bool = False,
    restore: bool = False,
    when: When = "always",
    debug: bool = False,
    on_reduce: Callable[[Event], object] | None = None,
    replace: bool = False,
) -> Attached:
    """Attach a recipe to a model; see `Zoo.attach`."""
    check_choice("when", when, "always", "eval", "train")
    flags = {"trace": trace, "restore": restore, "debug": debug, "replace": replace}
    for name, value in flags.items():
        check_flag(name, value)
    if on_reduce is not None and not callable(on_reduce):
        raise BadArgumentError(f"on_reduce={on_reduce!r}; it is a function that takes an Event")
    options = Options(recipe.proportional_attention, trace, restore, debug, on_reduce)
    model = _unwrap(model)
    previous = getattr(model, _MARK, None)
    if previous is not None and not replace:
        raise AttachError(
            f"a recipe is attached already ({previous!r}): call its detach(), or attach(..., replace=True)"
        )
    adapter = find_adapter(model)
    _check(recipe, adapter, model, restore=restore)
    attached = Attached(model, recipe, adapter, options=options, when=when)
    tokens = adapter.tokens()
    if tokens is not None:
        attached.plan(
            tokens
        )  # a budget that cannot be reached is an error now, not in the first pass
    if previous is not None:
        previous.detach()
    try:
        attached._install()  # pyright: ignore[reportPrivateUsage]
        plugins.manager().hook.tokenzoo_attached(attached=attached)
    except BaseException:
        attached.detach()
        if previous is not None:
            previous._install()
        raise
    return attached


def find_adapter(model: nn.Module) -> Adapter:
    """The adapter that knows this model.

    Raises:
        UnsupportedModelError: none does; says which there are.
        PluginError: a plugin takes something for an adapter that is none.
    """
    adapter = plugins.manager().hook.tokenzoo_adapter(model=model)
    if adapter is None:
        implementations = plugins.manager().hook.tokenzoo_adapter.get_hookimpls()
        names = sorted(implementation.plugin_name for implementation in implementations)
        raise UnsupportedModelError(
            f"no adapter knows {type(model).__module__}.{type(model).__qualname__}; there are "
            f"{', '.join(names) or 'none (is tokenzoo installed with pip?)'}. Attach to the vision tower "
            "itself, write an adapter (tokenzoo.Adapter), or use reduce() on its features"
        )
    if not isinstance(adapter, Adapter):
        raise PluginError(
            f"a plugin returns {adapter!r} from tokenzoo_adapter for {type(model).__qualname__}; it is an "
            "Adapter, or None for a model that it does not know"
        )
    return adapter


def _unwrap(model: Any) -> nn.Module:
    """The model inside DDP or FSDP; a compiled one is refused.

    Raises:
        AttachError: it is compiled: torch would silently ignore the hooks.
        UnsupportedModelError: it is no torch module.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"{model!r} is no torch.nn.Module: pass the model itself, as timm.create_model returns it"
        )
    if type(model).__name__ in (
        "DistributedDataParallel",
        "FullyShardedDataParallel",
        "DataParallel",
    ):
        return _unwrap(model.module)
    compiled = _compiled(model)
    if compiled is not None:
        raise AttachError(
            f"{type(compiled).__name__} is compiled, and torch ignores hooks that come later, without a "
            "word: attach first, then compile"
        )
    return model


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


def _compiled(model: nn.Module) -> nn.Module | None:
    """The first module of a model that is compiled, if one is."""
    for module in model.modules():
        if getattr(module, "_compiled_call_impl", None) is not None:
            return module
        if type(module).__name__ == "OptimizedModule":
            return module
    return None


def _check(recipe: Recipe, adapter: Adapter, model: nn.Module, *, restore: bool) -> None:
    """Raise if the recipe and the model do not go together."""
    name = type(model).__name__
    for step in recipe.steps:
        if step.stage.name not in adapter.stages:
            raise AttachError(
                f"this recipe works at {step.stage!r}; {name} can be reduced at "
                f"{', '.join(sorted(adapter.stages))}. On the features themselves: zoo.reduce(x, ...)"
            )
        if step.stage.name == "block" and step.stage.layer is not None:
            raise AttachError(
                f"{step.stage!r}: a step at the blocks takes all of them, by its schedule"
            )
    if len(recipe.steps) > 1:
        raise AttachError(f"{name} takes one step so far; this recipe has {len(recipe.steps)}")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise AttachError(
            f"{name} is on the meta device and cannot run: load its weights, then attach"
        )
    parts = [part for step in recipe.steps for part in walk(step.matcher)]
    if any(isinstance(part, Assigner) and part.extra for part in parts):
        who = {f"the attention of {name}": adapter.positional, "restore=True": restore}
        for asking, asks in who.items():
            if asks:
                raise AttachError(
                    f"this recipe makes new tokens, which have no place in the image, and {asking} needs "
                    "places: take an assigner that joins tokens to kept ones"
                )
    # The parts of a step at the image choose nothing: the adapter makes a smaller image.
    needs = frozenset[str]().union(*(s.needs for s in recipe.steps if s.stage.name != "image"))
    missing = sorted(needs - adapter.provides)
    if missing:
        raise MissingEvidenceError(
            f"this recipe needs {', '.join(missing)}; the sites of {name} show "
            f"{', '.join(sorted(adapter.provides))}. Choose a part that needs one of these"
        )
    if any(torch.is_inference(parameter) for parameter in model.parameters()):
        raise AttachError(
            "the model's parameters were made in inference mode; make it outside of that"
        )
