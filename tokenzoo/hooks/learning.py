"""Learned parts on a model: their weights are made for it, or checked against it, and go where it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tokenzoo.adapter import Adapter
from tokenzoo.budget import TokenBudget
from tokenzoo.errors import AttachError, UntrainedWarning
from tokenzoo.hooks.undo import undo_all
from tokenzoo.learned import Learned, Made, modules, parts_that_learn
from tokenzoo.recipe import Recipe

UNTRAINED = (
    "the weights of this recipe are not trained, and what it keeps is as good as random: train it "
    "(`tokenzoo train`, docs/learning.md), or load one that is trained with tokenzoo.load(path)"
)


def prepare(
    recipe: Recipe,
    model: nn.Module,
    adapter: Adapter,
    plan: Callable[[], TokenBudget],
    *,
    trains: bool,
) -> Callable[[], None]:
    """Make, or check, the weights of the learned parts of a recipe, and move all its modules to a model.

    Args:
        recipe: to be attached.
        model: the model.
        adapter: of the model.
        plan: the budget of an image of the model's own size.
        trains: whether the recipe is attached to be trained; otherwise untrained weights are a warning.

    Returns:
        What forgets the weights that were made here.

    Raises:
        AttachError: the weights were made for another model, or learned parts have no place on this one.
    """
    learned, undo = parts_that_learn(recipe.steps), list[Callable[[], None]]()
    if learned:
        made = _made_for(model, adapter, plan)
        for part in learned:
            if _misfits(part, made) and not part.weights.untouched(part):
                raise _other_model(part, made)
        for part in learned:
            if _misfits(part, made):
                part.weights.make(part, made)
                undo.append(part.weights.clear)
        if not trains and any(part.weights.untouched(part) for part in learned):
            warnings.warn(UNTRAINED, UntrainedWarning, stacklevel=4)  # the caller of Method.attach
    like = _like(model)
    for module in modules(recipe.steps):
        module.to(device=like.device, dtype=like.dtype)
    return lambda: undo_all(undo)


def warn_untrained(recipe: Recipe) -> None:
    """Warn where a recipe with learned parts is used on tensors before any weights are made."""
    if torch.compiler.is_compiling():
        return
    if any(part.weights.made is None for part in parts_that_learn(recipe.steps)):
        warnings.warn(UNTRAINED, UntrainedWarning, stacklevel=3)  # the caller of Method.reduce


def _made_for(model: nn.Module, adapter: Adapter, plan: Callable[[], TokenBudget]) -> Made:
    tokens, name = adapter.tokens(), type(model).__name__
    if tokens is None:
        raise AttachError(
            f"the weights of learned parts are made for images of one size; {name} takes several"
        )
    return Made(name, adapter.width * adapter.group, tokens, plan().blocks)


def _misfits(part: Learned, made: Made) -> bool:
    """Whether a part has no weights for a model."""
    own = part.weights.made
    if own is None:
        return True
    alike = (own.model, own.width, len(own.counts)) == (made.model, made.width, len(made.counts))
    return not alike or any(
        block not in own.sites
        or part.starts(made.width, keep) != part.starts(own.width, own.sites[block])
        for block, keep in made.sites.items()
    )


def _other_model(part: Learned, made: Made) -> AttachError:
    own = part.weights.made
    left = "" if own is None else f"{own}, which leaves {_sites(own)}"
    return AttachError(
        f"{part!r} has weights for {left}; this is {made}, and the recipe leaves {_sites(made)}: attach it "
        "to that model, or build the recipe again and train it here"
    )


def _sites(made: Made) -> str:
    return ", ".join(f"{n} tokens after block {i}" for i, n in made.sites.items()) or "all tokens"


def _like(model: nn.Module) -> Tensor:
    """A parameter whose device and dtype the modules of a recipe take."""
    floats = (p for p in model.parameters() if p.is_floating_point() and not p.is_meta)
    return next(floats, torch.zeros(()))
