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
    PluginError,
    UnsupportedModelError,
)
from tokenzoo.hooks import regional_compile as regional
from tokenzoo.hooks.fit import check_fit as check_fit
from tokenzoo.hooks.graph_capture import refuse_programs
from tokenzoo.hooks.handle import MARK, Attached, When
from tokenzoo.hooks.learning import prepare
from tokenzoo.hooks.reduction import Event, Options
from tokenzoo.hooks.sharding import refuse_sharded
from tokenzoo.recipe import Recipe


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
    frames: int | None = None,
    prove: bool = True,
    clock: Callable[[], None] | None = None,
) -> Attached:
    """Attach a recipe to a model; see `Method.attach`, and of the clock `Options`: it is for measuring."""
    check_choice("when", when, "always", "eval", "train")
    flags = {"trace": trace, "restore": restore, "debug": debug, "replace": replace}
    flags["prove"] = prove
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
    if frames is not None:
        adapter = adapter.with_frames(check_count("frames", frames))
    _check_runs(model, meta=not prove)
    check_fit(recipe, adapter, type(model).__name__, restore=restore)
    options = Options(
        recipe.proportional_attention, trace, restore, debug, on_reduce, clock, adapter.records
    )
    attached = Attached(model, recipe, adapter, options=options, when=when)
    _check_budget(attached)
    trains = model.training or when == "train"
    forget = prepare(recipe, model, adapter, attached.plan, trains=trains)
    try:
        if previous is not None:
            previous.detach()
        attached.install(prove=prove)
        plugins.manager().hook.tokenzoo_attached(attached=attached)
        return attached
    except BaseException:
        attached.detach()
        forget()
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


def _check_runs(model: nn.Module, *, meta: bool = False) -> None:
    """Raise if parameters were made in inference mode, or are on the meta device where that is an error."""
    offloaded = meta or any(hasattr(module, "_hf_hook") for module in model.modules())
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
        for frames in (1, 2):
            attached.plan(tokens, frames)
    except BudgetError as error:
        if not adapter.dynamic_size:
            raise
        name = type(attached.model).__name__
        warnings.warn(
            f"{error}. {name} takes images of several sizes, and the configured one has {tokens} tokens: "
            "smaller images may reach the budget, and a pass that cannot raises this error",
            stacklevel=4,  # the caller of Method.attach
        )
