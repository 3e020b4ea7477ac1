"""A recipe on a model: what it plans, what the last pass did, and how it comes off again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenzoo._core.validation import check_count
from tokenzoo.adapter import Adapter, BlockPath
from tokenzoo.budget import TokenBudget
from tokenzoo.errors import AttachError, BudgetError
from tokenzoo.evidence import Layer
from tokenzoo.hooks import packed_layout as packs
from tokenzoo.hooks import packed_site, sharding
from tokenzoo.hooks import regional_compile as regional
from tokenzoo.hooks import state as passes
from tokenzoo.hooks import verify as proof
from tokenzoo.hooks.graph_capture import Graphs, refuse_jit, refuse_script
from tokenzoo.hooks.packed_layout import Pack
from tokenzoo.hooks.packed_site import PackedSite
from tokenzoo.hooks.reduction import Options, Place, evidence_of, masses, reduced
from tokenzoo.hooks.report import Passed, passed
from tokenzoo.hooks.site import Site
from tokenzoo.hooks.snapshot import snapshot
from tokenzoo.hooks.state import Pass, PerThread, own
from tokenzoo.hooks.tap import sweep
from tokenzoo.kernels.choice import transformed
from tokenzoo.packed import PackedAdapter
from tokenzoo.recipe import Recipe, Stage
from tokenzoo.token_map import TokenMap

When = Literal["always", "eval", "train"]

MARK = "_tokenzoo_attached"
SCRIPT = "__prepare_scriptable__"
"""What `torch.jit.script` calls first, of each module that it is given."""


class _Last(PerThread):
    """The last pass of this thread, and the one that is on its way from the tower to the projector."""

    state: Pass | Pack | None = own("state")
    began: bool | None = own("began")
    passing: Pass | None = own("passing")
    transformed: bool | None = own("transformed")
    prompts: tuple[int, ...] | None = own("prompts")


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
        self._after = recipe.step_at(Stage.FEATURES)
        self._projected = recipe.step_at(Stage.PROJECTED)
        self._small = recipe.step_at(Stage.IMAGE) is not None
        self._watches = passes.watches(self._step)
        self._watches_projected = passes.watches(self._projected)
        self._watches_after = self._watches_projected or passes.watches(self._after)
        self._depth = len(adapter.blocks())
        # By block, what steps behind the last one call it.
        self._named: dict[int, tuple[Layer, ...]] = {}
        for layer in sorted(passes.layers(self._after, self._projected), key=str):
            index = adapter.layer(layer)
            if index is not None:
                self._named[index] = (*self._named.get(index, ()), layer)
        self._undo: list[Callable[[], Any]] = []
        # The spliced blocks, and the classes of them and of the model: fully_shard changes those.
        self._blocks: list[nn.Module] = []
        self._kinds: list[type] = []
        self._budgets: dict[int, TokenBudget] = {}
        self._last = _Last()
        # As many entries as there are paused() blocks. No thread-local: a compiled model would not look.
        self._pauses: list[None] = []

    @property
    def active(self) -> bool:
        """Whether a pass would reduce: nothing is paused, and the model is in the right mode."""
        mode = self.when == "always" or self.model.training == (self.when == "train")
        return mode and not self._pauses

    @property
    def restores(self) -> bool:
        """Whether all tokens are there again after each block (`restore=True`)."""
        return self.options.restore

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

    def plan(self, tokens: int | None = None) -> TokenBudget:
        """The patch tokens after each block, for an image of so many (None: the model's own size)."""
        if tokens is None:
            tokens = self.adapter.tokens()
        if tokens is None:
            raise AttachError(
                "this model takes images of any size: say how many patch tokens, plan(196)"
            )
        return self._plan(check_count("tokens", tokens))

    def _plan(self, tokens: int) -> TokenBudget:
        if tokens not in self._budgets:
            adapter = self.adapter
            more: dict[str, Any] = {}
            if isinstance(adapter, PackedAdapter):
                more = {"patches": adapter.patches, "reach": adapter.reach}
            self._budgets[tokens] = self.recipe.budget(
                tokens,
                self._depth,
                prefix=adapter.prefix,
                width=adapter.width,
                hidden=adapter.hidden,
                **more,
            )
        return self._budgets[tokens]

    @property
    def passes(self) -> tuple[Passed, ...]:
        """What the last pass of this thread did, by the grid of its images; of a batch there is one.

        Raises:
            AttachError: there was none yet, or the last one did not reach the last block.
        """
        if self._last.state is None:
            raise AttachError(STOPPED if self._last.began else NOT_RUN)
        return passed(self._last.state)

    @property
    def counts(self) -> tuple[int, ...]:
        """Patch tokens after each block in the last pass of this thread; () if the tower is left alone.

        Raises:
            AttachError: there was none yet, or it had images of several grids (see `passes`).
        """
        if not len(self._sites()) and self._projected is None:
            return ()
        return self._passed().counts

    @property
    def features(self) -> int:
        """Patch tokens of an image that left the tower, and the projector, in the last pass of this thread.

        Raises:
            AttachError: there was none yet, or the recipe leaves the tower alone.
        """
        if not len(self._sites()) and self._projected is None:
            raise AttachError(
                "this recipe leaves the tower and its projector alone; attached.prompts says how many "
                "visual tokens of each prompt were left in the language model"
            )
        return self._passed().features

    @property
    def mass(self) -> Tensor:
        """How many input tokens each token of the last pass stands for, `[b, n]`, prefix included."""
        mass = self._passed().mass
        self._check_outside()
        if mass is None:
            raise AttachError("nothing was reduced in the last pass: every token stands for itself")
        return mass

    @property
    def record(self) -> TokenMap:
        """From the first tokens to the last ones of the last pass; needs `attach(..., trace=True)`."""
        record = self._passed().record
        if not self.options.trace:
            raise AttachError("the plans of a pass are kept with attach(..., trace=True)")
        self._check_outside()
        if record is None:
            raise AttachError("nothing was reduced in the last pass")
        return record

    @property
    def prompts(self) -> tuple[int, ...]:
        """Visual tokens of each prompt that were left in the language model, in the last pass here.

        Raises:
            AttachError: there was none yet, or the recipe has no step in the language model.
        """
        if self._last.prompts is None:
            raise AttachError(
                "no prompt with images was reduced in the language model in this thread: the recipe has no "
                "step there (stage 'llm'), or the model has not run"
            )
        return self._last.prompts

    def note_prompts(self, counts: tuple[int, ...]) -> None:
        """For adapters: say how many visual tokens of each prompt are left in the language model."""
        self._last.prompts = counts

    def shorten(self, inputs: Any) -> Any:
        """What the processor of a multimodal model returned, with prompts that are short from the start.

        It is optional: the model shortens the prompts that it is given, and gives them back whole. Use it
        where lengths matter before the model runs: batching, serving, a count of tokens.

        Args:
            inputs: a mapping of arguments, as `processor(...)` returns it.

        Returns:
            A mapping of the same kind; `input_ids`, masks, labels and token types are shorter.

        Raises:
            AttachError: the model reads no prompts.
            BadArgumentError: the placeholders are not those that the model's processor writes.
        """
        short = self.adapter.shorten(self, inputs)
        return short if type(inputs) is dict else type(inputs)(short)

    def summary(self, tokens: int | None = None) -> str:
        """What is attached to what, and what it does: lines of text.

        Args:
            tokens: patch tokens of an image; None: the model's own size.
        """
        plan, needs, image = None, self.recipe.needs, "any size: summary(tokens=196)"
        if tokens is not None or self.adapter.tokens() is not None:
            try:
                plan = self.plan(tokens)
            except BudgetError as error:  # of the configured size, which is only one of several
                if tokens is not None or not self.adapter.dynamic_size:
                    raise
                image = f"any size: summary(tokens=196). Of the configured size, {error}"
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
            ("needs", ", ".join(sorted(needs)) or None),
            *((name, repr(value)) for name, value in chosen.items() if value != standard[name]),
        ]
        lines = [f"{name:<10}  {value}" for name, value in rows if value is not None]
        lines.append(f"image       {image}" if plan is None else str(plan))
        if self._last.state is not None:
            for one in self.passes:
                lines.append(f"last pass   {', '.join(map(str, one.counts))}")
        if self._last.prompts is not None:
            lines.append(
                f"last prompts  {', '.join(map(str, self._last.prompts))} visual tokens left"
            )
        return "\n".join(lines)

    def detach(self) -> None:
        """Take the recipe off; the model is the bare one again, bit for bit. Twice is once."""
        if self._undo:
            _forget_compiled()
        while self._undo:
            # Each step can be done twice: after an interrupt the next detach() begins with the same one.
            self._undo[-1]()
            self._undo.pop()
        self._blocks.clear()
        sweep()
        if getattr(self.model, MARK, None) is self:
            delattr(self.model, MARK)

    def __enter__(self) -> Attached:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()

    def __deepcopy__(self, memo: dict[int, Any]) -> Attached:
        """The copy that a copy of the whole model is attached with.

        Raises:
            AttachError: only a part of the model is copied: its hooks would reduce for good.
        """
        inside = {id(module) for module in self.model.modules()}
        first = next((key for key in memo if key in inside), id(self.model))
        if first != id(self.model):
            raise AttachError(
                f"a part of {type(self.model).__name__} is copied while a recipe is attached, and would "
                "reduce for ever: copy the whole model, or attach later (PEFT's modules_to_save copies)"
            )
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(deepcopy(self.__dict__, memo))
        return twin

    def __repr__(self) -> str:
        state = "attached to" if self._undo else "detached from"
        return f"<{self.recipe!r} {state} {type(self.model).__name__}>"

    def _passed(self) -> Passed:
        several = self.passes
        if len(several) != 1:
            raise AttachError(
                f"the last pass had images of {len(several)} grids ("
                f"{', '.join(str(one.tokens) for one in several)} tokens): attached.passes says what "
                "happened to those of each"
            )
        return several[0]

    def _enter(self, x: Tensor) -> Pass:
        """The state of a pass whose tokens `[b, n, c]` enter the first block.

        Raises:
            AttachError: they are not the prefix tokens and the patches of the image.
        """
        self._begin()
        prefix = self.adapter.prefix
        tokens = x.shape[1] - prefix
        patches = self.adapter.entering(tokens)
        if patches != tokens or tokens < 1:
            raise AttachError(_unknown(x.shape[1], prefix, patches))
        return self._start(x)

    def _begin_at(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        """A pre-hook of the first block, where that is not spliced."""
        del block, args
        self._begin()

    def _begin(self) -> None:
        """Forget the last pass: one that stops before the last block must not show another's counts."""
        # Gradient checkpointing runs the first block again in the backward pass, which is no new pass.
        task: Any = torch._C._current_graph_task_id  # pyright: ignore[reportPrivateUsage]
        again = not torch.compiler.is_compiling() and task() != -1
        if not again and not _traced():
            self._last.state, self._last.began = None, True

    def _check_outside(self) -> None:
        """Raise if the last pass ran inside a transform of torch.func."""
        if self._last.transformed:
            raise AttachError(
                "the last pass ran inside a transform of torch.func (vmap, grad, jacrev), and its tensors "
                "are known inside of that only: attached.counts are right; for masses and records run the "
                "model once without a transform"
            )

    def _start(self, x: Tensor) -> Pass:
        """The state before the first block: how many tokens there are says how many there will be."""
        tokens = x.shape[1] - self.adapter.prefix
        return self._start_of(tokens, self.adapter.grid(tokens))

    def _enter_packed(self, x: Tensor) -> Pack:
        """As `_enter`, for a sequence of images `[r, c]`."""
        self._begin()
        return self._start_packed(x)

    def _start_packed(self, x: Tensor) -> Pack:
        """As `_start`, for a sequence of images `[r, c]`."""
        adapter = self.adapter
        if not isinstance(adapter, PackedAdapter):
            raise AttachError(f"{adapter!r} is about no packed tower")
        grids = adapter.units()
        found = sum(rows * columns for rows, columns in grids)
        if found * adapter.patches != x.shape[0]:
            raise AttachError(
                f"{x.shape[0]} patches enter the first block, and the images of this pass have "
                f"{found * adapter.patches}: call the whole tower, with its grid_thw"
            )
        states = {grid: self._start_of(grid[0] * grid[1], grid) for grid in dict.fromkeys(grids)}
        orders = {grid: adapter.order(grid) for grid in states}
        known = {grid: order.to(x.device) for grid, order in orders.items() if order is not None}
        return packs.begin(grids, states, known, adapter.patches)

    def _before_pass(self, model: nn.Module, args: Any) -> None:
        """A pre-hook of the whole model."""
        del model, args
        if self.active:
            refuse_jit()
        self._carry()

    def _carry(self) -> None:
        """See to it that a model which was sharded since the last pass hands the state on."""
        if torch.compiler.is_compiling():
            return
        kinds = self._seen_kinds()
        if kinds != self._kinds:
            self._kinds = kinds
            self._undo += sharding.carry(self.model)

    def _seen_kinds(self) -> list[type]:
        return [type(self.model), *map(type, self._blocks)]

    def _start_of(self, tokens: int, grid: tuple[int, int] | None) -> Pass:
        self._carry()
        if self.active:
            refuse_jit()
        if not self.active or self._small:
            return Pass(None, (tokens,) * self._depth, tokens)
        budget = self._plan(tokens)
        return Pass(
            self._step,
            budget.blocks,
            tokens,
            after=self._after,
            features=budget.features,
            projected=budget.projected,
            grid=grid,
            watches=self._watches,
            watches_after=self._watches_after,
            keeps_evidence=self._watches_projected,
        )

    def _idle(self) -> bool:
        return not self.active

    def _wanted(self, tokens: int) -> int:
        """Patch tokens of an image that is to be shrunk from so many."""
        if self.active:
            refuse_jit()
        return self._plan(tokens).entering if self.active else tokens

    def _finish(self, state: Pass) -> None:
        """After the last block: what happened must be what was planned."""
        if self._projected is not None:
            self._last.passing = state
        self._check(state)
        self._keep(replace(state, layers=()) if state.layers else state)

    def _finish_packed(self, pack: Pack) -> None:
        """The same, for each grid."""
        for lot in pack.lots:
            self._check(lot.state)
        self._keep(pack)

    def _check(self, state: Pass) -> None:
        if state.counts and state.fired != state.counts[-len(self._sites()) :]:
            raise AttachError(
                f"planned were {state.counts} patch tokens after the blocks, there were {state.fired}: a "
                "block was skipped, run twice or replaced after the recipe was attached; detach, and "
                "attach again"
            )

    def _keep(self, state: Pass | Pack) -> None:
        if _traced():
            return
        self._last.transformed = transformed() and isinstance(state, Pass)
        if isinstance(state, Pass) and self._last.transformed:
            # What torch.vmap stacks has a meaning inside of it only.
            state = replace(state, mass=None, held=None, places=None, plan=None)
        self._last.state = state

    def _project_packed(
        self, projector: nn.Module, args: tuple[Tensor, ...], output: Tensor
    ) -> Tensor | None:
        """The step of the stage "projected", on what the projector makes of a sequence: `[t, c]`."""
        del projector
        step = self._projected
        if step is None or not self.active:
            return None
        pack = packs.of(args[0]) or self._start_packed(args[0])
        name = self.adapter.projector
        place = Place("projected", self._depth - 1, name, 0, positional=True, ordered=True)
        self.options.tick()
        output, pack = packed_site.project(output, pack, place, step, self.options)
        self.options.tick()
        packs.tag(args[0], pack)  # the tower hands it on as its last hidden state
        self._keep(pack)
        return output

    def _project(self, projector: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """The step of the stage "projected", on what the projector makes `[b, n, c]`."""
        del projector, args
        state, self._last.passing = self._last.passing, None
        step = self._projected
        if step is None or not self.active:
            return None
        prefix, reaching = self.adapter.prefix, self.adapter.reaching
        count = output.shape[1] - reaching
        if state is None:
            state = self._start(output.new_empty(1, prefix + count, 0))
        # As if all prefix tokens were here, for masses and plans count them.
        x = torch.cat(
            [output.new_zeros(output.shape[0], prefix - reaching, output.shape[2]), output], 1
        )
        evidence = state.evidence or evidence_of(x, state, None, prefix)
        evidence = evidence.renewed(x[:, prefix:], masses(x, state)[:, prefix:], dict(state.layers))
        if state.projected is not None and count > state.projected:
            place = Place("projected", self._depth - 1, self.adapter.projector, prefix)
            self.options.tick()
            x, _, state = reduced(step, state, x, evidence, state.projected, place, self.options)
            self.options.tick()
        self._keep(replace(state, evidence=None, layers=(), left=x.shape[1] - prefix))
        return x[:, prefix - reaching :]

    def _sites(self) -> range:
        """Indices of the blocks that are spliced: all, or the last, or none."""
        if self._step is not None or self._small:
            return range(self._depth)
        alone = self._after is not None or self._watches_projected or bool(self._named)
        first = self._depth - 1 if alone else self._depth
        return range(min([first, *self._named]), self._depth)

    def install(self) -> None:
        """Prove and install everything, or raise and leave the model as it was."""
        adapter, model = self.adapter, self.model
        _forget_compiled()
        put_back = snapshot(model)
        try:
            if len(self._sites()):
                self._splice()
            if self._projected is not None:
                projector = model.get_submodule(adapter.projector)
                packed = isinstance(adapter, PackedAdapter)
                hook: Any = self._project_packed if packed else self._project
                self._undo.append(projector.register_forward_hook(hook).remove)
            # Before what an adapter makes of the arguments.
            self._undo.append(model.register_forward_pre_hook(self._before_pass).remove)
            undo = adapter.connect(self)
            if undo is not None:
                self._undo.append(undo)
            setattr(model, SCRIPT, refuse_script)
            self._undo.append(partial(delattr, model, SCRIPT))
            self._kinds = self._seen_kinds()
            setattr(model, MARK, self)
        except BaseException:
            self.detach()
            put_back()
            raise

    def _splice(self) -> None:
        """Splice the blocks of the tower, and prove that they are what they seem to be."""
        adapter, model, sites = self.adapter, self.model, self._sites()
        paths = adapter.blocks()
        tried = proof.trials(model, adapter, [(i, paths[i]) for i in sites])
        undo = adapter.install(self.recipe.proportional_attention)
        if undo is not None:
            self._undo.append(undo)
        for index in sites:
            site = self._site(index, paths[index], sites)
            self._undo += site.install(model)
            block = model.get_submodule(paths[index].name)
            if not self._blocks and isinstance(site, Site):
                graphs = Graphs(paths[index].name, site.running)
                self._undo += [handle.remove for handle in graphs.install(block)]
            self._blocks.append(block)
        if sites[0] > 0:  # a pass begins at the first block of the tower, spliced or not
            block = model.get_submodule(paths[0].name)
            self._undo.append(block.register_forward_pre_hook(self._begin_at).remove)
        self._undo += regional.watch(model, [paths[index] for index in sites])
        for name in adapter.followers():
            handle = model.get_submodule(name).register_forward_hook(_follow)
            self._undo.append(handle.remove)
        if self._small:
            self._undo.append(adapter.shrink(self._wanted))
        steps = (self._step, self._after, self._projected)
        needs = frozenset[str]().union(*(step.needs for step in steps if step is not None))
        names = frozenset(need.partition("@")[0] for need in needs)
        proof.prove(model, adapter, tried, names & passes.FROM_ATTENTION)

    def _site(self, index: int, path: BlockPath, sites: range) -> Site | PackedSite:
        adapter, idle, options = self.adapter, self._idle, self.options
        first, last = index == sites[0], index == sites[-1]
        more: dict[str, Any] = {"idle": idle, "options": options}
        more["names"] = self._named.get(index, ())
        if isinstance(adapter, PackedAdapter):
            start = self._enter_packed if first else None
            finish = self._finish_packed if last else None
            return PackedSite(index, path, adapter, start=start, finish=finish, **more)
        begin, end = self._enter if first else None, self._finish if last else None
        return Site(index, path, adapter, start=begin, finish=end, **more)


NOT_RUN = "the model has not run in this thread since the recipe was attached"

STOPPED = (
    "the last pass in this thread did not reach the last block that the tower had when the recipe was "
    "attached: it stopped early (an exception, forward_intermediates(stop_early=True)), or blocks were cut "
    "(prune_intermediate_layers): then detach, and attach again"
)


def _unknown(tokens: int, prefix: int, patches: int) -> str:
    """What to say of a pass whose tokens are not prefix tokens and patches."""
    more = tokens - prefix - patches
    said = (
        f"{tokens} tokens enter the first block: {patches} patches of the image, and {tokens - patches} "
        f"others where {prefix} prefix tokens (CLS, registers) are known. "
    )
    if more < 0:
        return f"{said}Something dropped {-more} patches before the blocks, which is not followed"
    return (
        f"{said}If the {more} more (prompts) come before the patches, declare them: attach(..., "
        f"prefix={prefix + more}). After the patches, or between them, they cannot be told from patches"
    )


def _traced() -> bool:
    """Whether the pass is written down, by torch.export or torch.jit, and has no values to look at."""
    # is_exporting() is True in what torch 2.11 compiles, too.
    exported: bool = torch.compiler._is_exporting_flag  # pyright: ignore[reportPrivateUsage]
    return exported or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def _follow(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """Let the state travel through a module that hands all tokens on."""
    del module
    state = passes.of(args[0])
    return output if state is None or output is args[0] else passes.tag(output, state)


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
