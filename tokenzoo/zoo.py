"""`build` makes a method from a recipe; a method can plan, reduce, attach and save."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor

from tokenzoo import plugins, serialization, stored_weights
from tokenzoo._core.deprecation import rename_options
from tokenzoo._core.quoting import quote
from tokenzoo._core.validation import is_kind
from tokenzoo.budget import TokenBudget
from tokenzoo.errors import BadArgumentError, UnknownNameError
from tokenzoo.evidence import Layer
from tokenzoo.evidence_inputs import EvidenceInputs
from tokenzoo.hooks.attach import attach
from tokenzoo.hooks.handle import Attached, When
from tokenzoo.hooks.learning import warn_untrained
from tokenzoo.hooks.reduction import Event
from tokenzoo.recipe import Recipe
from tokenzoo.reduce import Reduced, reduce


@dataclass(frozen=True)
class Method:
    """A recipe that is ready for use; made by `build` or `load`.

    Attributes:
        recipe: the parts and the numbers.
        name: the name under which it was built; None for a recipe made by hand.
        options: the options given to `build`.
    """

    recipe: Recipe
    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def plan(
        self, tokens: int, depth: int, *, prefix: int = 0, width: int = 768, hidden: int = 0
    ) -> TokenBudget:
        """Compute how many patch tokens there are after each block, and what that costs.

        Args:
            tokens: patch tokens of one image.
            depth: blocks of the tower whose result is read.
            prefix: CLS and register tokens (they cost, but are never counted or removed).
            width: channels of a token.
            hidden: width of the MLP; 0: four times `width`.

        Raises:
            BudgetError: `keep` cannot be reached on this depth; names the fewest.
        """
        return self.recipe.budget(tokens, depth, prefix=prefix, width=width, hidden=hidden)

    def reduce(
        self,
        x: Tensor,
        *,
        mass: Tensor | None = None,
        protected: Tensor | None = None,
        prefix: int = 0,
        at: Mapping[Layer, Mapping[str, Any]] | None = None,
        **evidence: Unpack[EvidenceInputs],
    ) -> Reduced:
        """Reduce bare tensors at one site; the schedule is not consulted.

        Tensors are about the whole input: N tokens, prefix tokens first.

        Args:
            x: features `[b, N, c]`.
            mass: how many input tokens each token stands for `[b, N]`; None: 1.
            protected: bool `[b, N]`, tokens that stay as they are.
            prefix: number of leading tokens that are never touched, nor counted by `keep`.
            at: evidence of other layers: `{-2: {"cls_attention": ...}}`. The layer "text" has other
                tokens, the t of the prompt after the last visual one, and other shapes:
                `{"text": {"x": [b, t, c], "keys": [b, h, t, d]}}`, t >= 0. "next" is the layer of a
                language model that follows this site, "embedded" the prompt as it entered the model;
                "entered" and "previous" are these tokens as they entered the block, and the one before.
            evidence: keys, queries, cls_attention, text, grid, ...: see
                `tokenzoo.evidence_inputs.EvidenceInputs`. What the recipe does not need is ignored.

        Raises:
            BudgetError: one step does not go down to `keep`; says how far it goes.
            MissingEvidenceError: a part needs evidence that was not given.
            BadArgumentError: an unknown name, or a shape that does not fit.
        """
        warn_untrained(self.recipe)
        return reduce(
            self.recipe, x, mass=mass, protected=protected, prefix=prefix, at=at, **evidence
        )

    def attach(
        self,
        model: Any,
        *,
        trace: bool = False,
        restore: bool = False,
        when: When = "always",
        debug: bool = False,
        on_reduce: Callable[[Event], object] | None = None,
        replace: bool = False,
        prefix: int | None = None,
        frames: int | None = None,
        prove: bool = True,
    ) -> Attached:
        """Make a model carry fewer tokens from now on; `detach()` or a `with` block undoes it.

        Args:
            model: a vision transformer that an adapter knows.
            trace: keep the token map of each pass in `attached.record` (costs a little time and memory).
            restore: the output of each block has all tokens, for dense heads and `forward_intermediates`: a
                merged token has the features of the token that it is part of, a dropped one those with
                which it entered the block that dropped it. The blocks still work on few tokens.
            when: "always", "eval" or "train": in the other mode of the model nothing is reduced.
            debug: raise on NaN, infinities and inconsistent token maps at every site. It waits for the
                device, and cannot be compiled with fullgraph=True.
            on_reduce: called in every pass after each reduction, with an `Event`: the block's index, the
                token map, the tokens before and after.
            replace: first detach the recipe that is attached.
            prefix: number of tokens before the patches in a model with visual prompts (prompt tuning),
                CLS and registers included: CLS and five prompts are 6. None: as many as the model's class
                has.
            frames: number of frames of a video, for a model that takes them as images of a prompt (LLaVA,
                InternVL): so many images of a call, one after the other, are one video. None: images are
                images; a model that takes videos says itself what is one.
            prove: compare the blocks with and without the recipe, on random tokens. False: nothing is run,
                for a model whose layers cannot run yet: call `attached.prove()` before the first pass. Or
                for one on the meta device, which only plans and shortens prompts.

        Raises:
            UnsupportedModelError: no adapter can follow this model's tokens; says why.
            MissingEvidenceError: the recipe needs what the model cannot show.
            AttachError: it is compiled already, or something is attached already, or the model failed
                the proof on random tokens.
            BadArgumentError: an argument has another type or value.
        """
        return attach(
            self.recipe,
            model,
            trace=trace,
            restore=restore,
            when=when,
            debug=debug,
            on_reduce=on_reduce,
            replace=replace,
            prefix=prefix,
            frames=frames,
            prove=prove,
        )

    def save(self, path: str | Path) -> None:
        """Write names and numbers as JSON; never code. Read it with `tokenzoo.load`.

        The weights of parts that learn go next to it, into a file that ends in .safetensors.
        """
        serialization.save(self.recipe, self.name, self.options, path)

    def __repr__(self) -> str:
        if self.name is None:
            return f"tokenzoo.build({self.recipe!r})"
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"tokenzoo.build({self.name!r}{options})"


def build(recipe: str | Recipe, **options: Any) -> Method:
    """Make a recipe ready for use.

    Args:
        recipe: a name (`list_recipes()`), or a `Recipe` made by hand.
        options: the recipe's own; `describe(name)` lists them. Every recipe takes `flops=0.5` instead of
            `keep`: the most tokens whose plan costs no more than that share of the blocks' operations. A
            recipe made by hand has these two only.

    Raises:
        UnknownNameError: no such recipe, or no such option; names the nearest.
        BadArgumentError: an option has a value that cannot work.
        PluginError: a plugin's function does not return a recipe.
    """
    if isinstance(recipe, Recipe):
        unknown = sorted(set(options) - {"keep", "flops"})
        if unknown:
            raise UnknownNameError(plugins.unknown("option", unknown[0], ["keep", "flops"]))
        return Method(_with(recipe, **options) if options else recipe)
    if not is_kind(recipe, str):
        raise BadArgumentError(
            f"build({quote(recipe)}): build takes the name of a recipe, or a Recipe"
        )
    factory = plugins.find("recipes", recipe)
    known = inspect.signature(factory).parameters
    options = rename_options(recipe, options, known, stacklevel=3)
    for name in options:
        if name not in known and name != "flops":
            raise UnknownNameError(plugins.unknown(f"option of {recipe}", name, [*known, "flops"]))
    own = {name: value for name, value in options.items() if name in known}
    made = plugins.make_recipe(recipe, own)
    if "flops" in options and "flops" not in known:
        made = _with(made, flops=options["flops"], keep=own.get("keep"))
    return Method(made, recipe, options)


def _with(recipe: Recipe, *, keep: int | float | None = None, flops: float | None = None) -> Recipe:
    """Return the recipe with another budget."""
    proportional = recipe.proportional_attention
    return Recipe(*recipe.steps, keep=keep, flops=flops, proportional_attention=proportional)


def load(path: str | Path) -> Method:
    """Read a recipe that `save` wrote.

    Raises:
        BadArgumentError: the file, or the one with the weights next to it, is not one of ours.
        UnknownNameError: it names a part or recipe that is not installed.
    """
    content = serialization.read(path)
    if "recipe" in content:
        method = build(content["recipe"], **content["options"])
    else:
        method = Method(content["steps"])
    if "weights" in content:
        stored_weights.read(method.recipe, content["weights"], Path(path).parent)
    return method


def list_recipes(pattern: str = "*") -> list[str]:
    """Names of the recipes that match a shell pattern, e.g. "*prune*"."""
    return plugins.names("recipes", pattern)


def list_scorers(pattern: str = "*") -> list[str]:
    """Names of the token scorers and pair scorers that match a shell pattern."""
    return plugins.names("scorers", pattern)


def list_matchers(pattern: str = "*") -> list[str]:
    """Names of the matchers, selectors, assigners, splits and protections that match a shell pattern."""
    return plugins.names("matchers", pattern)


def list_mergers(pattern: str = "*") -> list[str]:
    """Names of the mergers that match a shell pattern."""
    return plugins.names("mergers", pattern)


def list_schedules(pattern: str = "*") -> list[str]:
    """Names of the schedules that match a shell pattern."""
    return plugins.names("schedules", pattern)


def list_adapters() -> list[str]:
    """Names of the plugins that provide adapters."""
    hook = plugins.manager().hook.tokenzoo_adapter
    return sorted(implementation.plugin_name for implementation in hook.get_hookimpls())
