"""Attaching a recipe to a model, or saying why not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from tokenzoo import plugins
from tokenzoo._core.quoting import quote
from tokenzoo._core.validation import check_choice, check_count, check_flag
from tokenzoo.adapter import Adapter
from tokenzoo.errors import (
    AttachError,
    BadArgumentError,
    BudgetError,
    MissingEvidenceError,
    PluginError,
    UnsupportedModelError,
)
from tokenzoo.evidence import layer_of
from tokenzoo.hooks import regional_compile as regional
from tokenzoo.hooks.graph_capture import refuse_programs
from tokenzoo.hooks.handle import MARK, Attached, When
from tokenzoo.hooks.reduction import Event, Options
from tokenzoo.hooks.sharding import refuse_sharded
from tokenzoo.parts import Assigner, Selector, walk
from tokenzoo.recipe import Recipe, Stage, Step


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
    prefix: int | None = None,
    clock: Callable[[], None] | None = None,
) -> Attached:
    """Attach a recipe to a model; see `Method.attach`, and of the clock `Options`: it is for measuring."""
    check_choice("when", when, "always", "eval", "train")
    flags = {"trace": trace, "restore": restore, "debug": debug, "replace": replace}
    for name, value in flags.items():
        check_flag(name, value)
    if on_reduce is not None and not callable(on_reduce):
        raise BadArgumentError(
            f"on_reduce={quote(on_reduce)}; it must be a function that takes an Event"
        )
    refuse_sharded(model)
    refuse_programs(model)
    model = _unwrap(model)
    previous = getattr(model, MARK, None)
    if previous is not None and not replace:
        raise AttachError(
            f"a recipe is attached already ({previous!r}): call its detach(), or attach(..., replace=True)"
        )
    adapter = find_adapter(model)
    if prefix is not None:
        adapter = adapter.with_prefix(check_count("prefix", prefix, least=0))
    _check_runs(model)
    check_fit(recipe, adapter, type(model).__name__, restore=restore)
    options = Options(
        recipe.proportional_attention, trace, restore, debug, on_reduce, clock, adapter.records
    )
    attached = Attached(model, recipe, adapter, options=options, when=when)
    _check_budget(attached)
    try:
        if previous is not None:
            previous.detach()
        attached.install()
        plugins.manager().hook.tokenzoo_attached(attached=attached)
        return attached
    except BaseException:
        attached.detach()
        if previous is not None:
            previous.detach()  # the rest of it, if that was interrupted
            previous.install()
        raise


def find_adapter(model: nn.Module) -> Adapter:
    """The adapter that knows this model.

    Raises:
        UnsupportedModelError: none does; says which there are.
        PluginError: a plugin returns something that is not an adapter.
    """
    adapter = plugins.manager().hook.tokenzoo_adapter(model=model)
    if adapter is None:
        implementations = plugins.manager().hook.tokenzoo_adapter.get_hookimpls()
        names = sorted(implementation.plugin_name for implementation in implementations)
        raise UnsupportedModelError(
            f"no adapter supports {type(model).__module__}.{type(model).__qualname__}; installed are "
            f"{', '.join(names) or 'none (is tokenzoo installed with pip?)'}. Attach to the vision tower "
            "itself, write an adapter (tokenzoo.Adapter), or use reduce() on its features"
        )
    if not isinstance(adapter, Adapter):
        raise PluginError(
            f"a plugin returns {quote(adapter)} from tokenzoo_adapter for {type(model).__qualname__}; this "
            "must be an Adapter, or None for a model that it does not support"
        )
    return adapter


def _unwrap(model: Any) -> nn.Module:
    """The model inside DDP or PEFT; a compiled one is refused.

    Raises:
        AttachError: it is compiled: torch would silently ignore the hooks.
        UnsupportedModelError: it is no torch module.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"{quote(model)} is not a torch.nn.Module: pass the model itself, as timm.create_model returns "
            "it"
        )
    if type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
        return _unwrap(model.module)
    if any(kind.__name__ == "PeftModel" for kind in type(model).__mro__):
        return _unwrap(cast("Any", model).get_base_model())
    compiled = _compiled(model)
    if compiled is not None:
        raise AttachError(
            f"{type(compiled).__name__} is compiled, and torch silently ignores hooks that are added "
            "later: attach first, then compile"
        )
    return model


def _compiled(model: nn.Module) -> nn.Module | None:
    """The first module of a model that is compiled, if one is."""
    return next((module for module in model.modules() if regional.compiled(module)), None)


def _check_runs(model: nn.Module) -> None:
    """Raise if parameters are on the meta device or were made in inference mode."""
    offloaded = any(hasattr(module, "_hf_hook") for module in model.modules())
    if not offloaded and any(parameter.is_meta for parameter in model.parameters()):
        raise AttachError(
            f"{type(model).__name__} is on the meta device and cannot run: load its weights, then attach"
        )
    if any(torch.is_inference(parameter) for parameter in model.parameters()):
        raise AttachError(
            "the model's parameters were made in inference mode; make the model outside of inference_mode()"
        )


def _check_budget(attached: Attached) -> None:
    """See that the budget can be reached, before the first pass.

    Raises:
        BudgetError: it cannot, and the model takes images of one size only. For a model that takes several
            this is a warning: smaller images may reach it.
    """
    adapter = attached.adapter
    tokens = adapter.tokens()
    if tokens is None:
        return
    try:
        attached.plan(tokens)
    except BudgetError as error:
        if not adapter.dynamic_size:
            raise
        name = type(attached.model).__name__
        warnings.warn(
            f"{error}. {name} takes images of several sizes, and the configured one has {tokens} tokens: "
            "smaller images may reach the budget, and a pass that cannot raises this error",
            stacklevel=4,  # the caller of Method.attach
        )


def check_fit(recipe: Recipe, adapter: Adapter, name: str, *, restore: bool = False) -> None:
    """See that a recipe and a model go together, by what the adapter says; nothing is run.

    Args:
        recipe: to be attached.
        adapter: of the model, which may be on the meta device.
        name: of the model's class, for the messages.
        restore: see `Method.attach`.

    Raises:
        AttachError: the model has no such stage, or the recipe asks for what it cannot do.
        MissingEvidenceError: the recipe needs what the model cannot show.
    """
    if len(recipe.steps) > 1 and recipe.step_at(Stage.IMAGE) is not None:
        raise AttachError(
            "a step at stage 'image' must be the only step: later ones would be planned for the whole image"
        )
    for step in recipe.steps:
        if step.stage.name not in adapter.stages:
            raise AttachError(
                f"this recipe works at {step.stage!r}; {name} can be reduced at "
                f"{', '.join(sorted(adapter.stages))}{adapter.no_other_stage}. On the features "
                "themselves: zoo.reduce(x, ...)"
            )
        if step.stage.name == "block" and step.stage.layer is not None:
            raise AttachError(
                f"{step.stage!r}: a step at the blocks names no layer; its schedule chooses the blocks"
            )
        if step.prefix == "drop":
            raise AttachError(
                f"prefix='drop' at {step.stage!r}: a model reads its CLS and register tokens itself; leave "
                "prefix='keep' (a language model gets no CLS or register tokens either way)"
            )
    inside = any(step.stage.name in ("block", "features") for step in recipe.steps)
    if adapter.all_tokens and inside and not restore:
        raise AttachError(
            f"{name} needs all tokens after its blocks: {adapter.all_tokens}. Attach with "
            "restore=True, which restores them after the last block; or write an Adapter "
            "whose install() counts masses"
        )
    if restore and adapter.projector:
        raise AttachError(
            f"restore=True: the projector of {name} reads the output of the tower's blocks and would "
            f"get all tokens again: use restore=False, or attach to a tower without a projector"
        )
    for step in recipe.steps:
        parts = walk(step.matcher)
        if any(isinstance(part, Assigner) and part.extra for part in parts):
            inside = adapter.positional and step.stage.name == "block"
            follows = inside or adapter.layout_class.ordered
            who = {f"the attention of {name}": follows, "restore=True": restore}
            for asking in (asking for asking, asks in who.items() if asks):
                raise AttachError(
                    f"this recipe makes new tokens, which have no position in the image, and {asking} "
                    "needs positions: choose an assigner that joins tokens to kept ones"
                )
    for step in recipe.steps:
        _check_ragged(recipe, step, adapter, name)
        # The parts of a step at the image choose nothing: the adapter makes a smaller image.
        shown = adapter.provides_at(step.stage.name)
        if step.stage.name == "block":
            shown |= {"depth"}  # a site knows which block it is
        missing = sorted(
            need
            for need in (step.needs if step.stage.name != "image" else ())
            if need not in shown and not _shown_by_another(need, step.stage.name, adapter)
        )
        if missing:
            hint = ""
            if "cls_attention" in missing and "received_attention" in shown:
                hint = ": without a CLS token, ReceivedAttention() in place of CLSAttention()"
            if "text" in missing and "text" in adapter.provides_at("projected"):
                hint = ": text is there in the language model's space, at Stage.PROJECTED"
            raise MissingEvidenceError(
                f"this recipe needs {', '.join(missing)} at {step.stage!r}; {name} provides "
                f"{', '.join(sorted(shown))} at this stage. Choose a part that needs one of these{hint}"
            )


def _check_ragged(recipe: Recipe, step: Step, adapter: Adapter, name: str) -> None:
    """Raise if how many tokens stay comes from the data, where nothing can go by that.

    Raises:
        AttachError: the prompts of a language model are written before; a packed sequence has no padding;
            or the attention of later blocks would not know which tokens are padding.
    """
    parts = walk(step.matcher)
    if not any(isinstance(part, Selector) and part.ragged for part in parts):
        return
    wants = "How many tokens stay comes from the data with this recipe, and "
    if not adapter.layout_class.pads:
        raise AttachError(
            f"{wants}the packed sequence of {name} cannot hold padding tokens: use the variant of "
            "the recipe with a fixed token count"
        )
    if step.stage.name in ("projected", "llm") or adapter.projector:
        raise AttachError(
            f"{wants}the prompts of {name} need a token count that is known in advance: use the variant of "
            "the recipe with a fixed token count, or attach to the vision tower alone"
        )
    if step.stage.name == "block" and not recipe.proportional_attention:
        raise AttachError(
            f"{wants}padding tokens have mass 0, which the attention of later blocks must use: "
            "Recipe(..., proportional_attention=True)"
        )


def _shown_by_another(need: str, stage: str, adapter: Adapter) -> bool:
    """Whether a block of the tower shows this to a step after the last one: "cls_attention@5"."""
    name, _, _ = need.partition("@")
    layer = layer_of(need)
    if layer is None or stage not in ("features", "projected"):
        return False
    # Its queries and keys travel on, and what was computed of them: not the attention itself.
    shown = adapter.provides_at(stage) - {"attention", "grid", "x", "mass", "text"}
    return name in shown and adapter.layer(layer) is not None
