"""Tests whether a recipe works on a model: made with random weights, attached, run and compared.

A model is refused if nothing was attached and an error of ours gives the reason. It works if keeping all
tokens changes nothing, if the token counts after each block are as planned, and if `detach` restores the
bare model. All else is a bug of ours, and the model is called broken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from tokenzoo.attachment import EVERY
from tokenzoo.errors import BadArgumentError, TokenzooError, UnsupportedModelError
from tokenzoo.hooks.attach import find_adapter
from tokenzoo.tools import model_loading, transformers_loading
from tokenzoo.zoo import Method, build

Given = Tensor | Mapping[str, Any]

TOLERANCE = 1e-5  # float32: some roundings, relative to the largest output
VISIBLE = 1e-3  # the smallest change by fewer tokens; below it, the test shows nothing


@dataclass(frozen=True)
class CompatibilityReport:
    """The result for one model.

    Attributes:
        name: name of the model.
        family: class of the model.
        verdict: whether the recipe works, is refused or is broken.
        reason: why it was refused, or what is broken.
        identity: largest difference when all tokens are kept, relative to the largest output.
        change: the same for the given budget.
        tokens: patch tokens before the first block.
        counts: patch tokens after each block.
        planned: planned patch tokens after each block.
        flops: planned operations of the blocks, relative to the bare model.
    """

    name: str
    family: str
    verdict: Literal["works", "refused", "broken"]
    reason: str = ""
    identity: float | None = None
    change: float | None = None
    tokens: int | None = None
    counts: tuple[int, ...] = ()
    planned: tuple[int, ...] = ()
    flops: float | None = None


def examine(
    name: str,
    *,
    recipe: str = "evoprune",
    keep: int | float = 0.25,
    depth: int | None = None,
    batch: int = 2,
    **options: Any,
) -> CompatibilityReport:
    """Try a recipe on a model that is made for this, with random weights; nothing is downloaded.

    Args:
        name: a model of timm, "torchvision:...", "open_clip:...", "transformers:TYPE", or a folder with
            a config.json of transformers.
        recipe: the name of a recipe.
        keep: patch tokens to keep.
        depth: number of blocks, if the model takes one, to save time; None: its own.
        batch: number of images.
        options: of the model, e.g. `img_size`.

    Raises:
        UnknownNameError: no such model or recipe; names the nearest.
        BadArgumentError: the model cannot be made so, or its blocks do not reach `keep` (`BudgetError`).
        MissingDependencyError: the library that makes the model is not installed.
    """
    zoo, whole = build(recipe, keep=keep), build(recipe, keep=1.0)
    try:
        weightless = model_loading.create(name, device="meta", **options).model
    except (RuntimeError, NotImplementedError):
        weightless = None  # its constructor computes values
    if weightless is not None:
        try:
            find_adapter(weightless)
        except UnsupportedModelError as error:  # weights make no difference
            return CompatibilityReport(name, type(weightless).__name__, "refused", str(error))
    tower = model_loading.create(name, depth=depth, **options)
    model_loading.randomise(tower.model)
    if not tower.size:
        given = transformers_loading.inputs(tower.model, find_adapter(tower.model), batch)
        return examine_model(tower.model, given, zoo, whole, name=name)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, *tower.size, generator=generator)
    return examine_model(tower.model, images, zoo, whole, name=name)


def examine_model(
    model: nn.Module, images: Given, zoo: Method, whole: Method, *, name: str
) -> CompatibilityReport:
    """Try a recipe on a model.

    Args:
        model: in eval mode, with nothing attached.
        images: its input, or a mapping of its arguments.
        zoo: the recipe.
        whole: the same recipe, keeping all tokens.
        name: name in the report.

    Raises:
        BadArgumentError: the recipe's `keep` is out of reach (`BudgetError`).
    """
    family = type(model).__name__
    try:
        return _try(model, images, zoo, whole, name)
    except BadArgumentError:
        raise
    except Exception as error:
        # Any error is a result.
        return CompatibilityReport(name, family, "broken", f"{type(error).__name__}: {error}")


def _try(
    model: nn.Module, images: Given, zoo: Method, whole: Method, name: str
) -> CompatibilityReport:
    family = type(model).__name__
    bare = _run(model, images)
    try:
        attached = whole.attach(model)
    except BadArgumentError:
        raise
    except TokenzooError as error:
        return CompatibilityReport(name, family, "refused", str(error))
    with attached:
        identity = _gap(_run(model, images), bare)
        tokens = attached.counts[0] if attached.counts else _tokens(attached.adapter, images)
    with zoo.attach(model) as attached:
        fewer = _run(model, images)
        change = _gap(fewer, bare[: len(fewer)])  # a packed tower returns fewer rows
        counts, plan = attached.counts, attached.plan(tokens)
    problems = {
        f"keeping all tokens changes the output by {identity:.1e} of the largest": not identity
        <= TOLERANCE,
        "there were other counts than planned": counts not in ((), plan.blocks),
        f"fewer tokens change the output by {change:.1e} of the largest: too little to see an error": (
            plan.least < tokens and not change >= VISIBLE
        ),
        "after detach it is not the bare model": not torch.equal(_run(model, images), bare),
    }
    found = [problem for problem, there in problems.items() if there]
    return CompatibilityReport(
        name,
        family,
        "broken" if found else "works",
        "; ".join(found),
        identity=identity,
        change=change,
        tokens=tokens,
        counts=counts,
        planned=plan.blocks,
        flops=plan.flops,
    )


def _tokens(adapter: Any, images: Given) -> int:
    """Return the patch tokens of an image of a multimodal input."""
    return next(iter(adapter.visuals(images, EVERY).values()))[0].patches


def _run(model: nn.Module, images: Given) -> Tensor:
    """Return the first output; for transformers, one whose shape does not depend on the token count."""
    with torch.inference_mode():
        output: Any = model(images) if isinstance(images, Tensor) else model(**images)
    if getattr(output, "logits", None) is not None:
        return output.logits[:, -1]
    if getattr(output, "pooler_output", None) is not None:
        return output.pooler_output
    if hasattr(output, "last_hidden_state"):
        return output.last_hidden_state[:, 0]
    return cast("tuple[Tensor, ...]", output)[0] if isinstance(output, tuple) else output


def _gap(output: Tensor, bare: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return float((output - bare).abs().max() / bare.abs().max())
