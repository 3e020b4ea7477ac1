"""transformers' models with a vision tower in them: classifiers with a mean, and one that needs the grid.

A classifier takes a plain mean of the tokens that leave its tower. Two hooks correct it: one computes the
mean by mass when the tower has run, the other replaces the plain mean by it, before the linear layer.
Where only the tower is attached to, a hook of the tower refuses to be called by such a classifier.
"""

from __future__ import annotations

import gc
import inspect
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenzoo.adapter import Attachment
from tokenzoo.errors import AttachError
from tokenzoo.hooks import PerThread, Undo, reduced_tokens, thread_local
from tokenzoo.recipe import Stage
from tokenzoo_adapters.common.own_code import own_code
from tokenzoo_adapters.common.pooling import mean, state_of
from tokenzoo_adapters.hf.names import loaded_class


@dataclass(frozen=True)
class OuterModel:
    """A class of models with a tower in them.

    Attributes:
        folder: of transformers.models.
        model: the class.
        tower: the attribute with the tower.
        reads: the "cls" token, the "mean" of the tokens (before its `classifier`), or all on the "grid".
    """

    folder: str
    model: str
    tower: str
    reads: Literal["cls", "mean", "grid"]


OUTER_MODELS = (
    OuterModel("clip", "CLIPVisionModelWithProjection", "vision_model", "cls"),
    OuterModel("clip", "CLIPForImageClassification", "vision_model", "mean"),
    OuterModel("siglip", "SiglipForImageClassification", "vision_model", "mean"),
    OuterModel("siglip2", "Siglip2ForImageClassification", "vision_model", "mean"),
    OuterModel("dinov2", "Dinov2ForImageClassification", "dinov2", "mean"),
    OuterModel(
        "dinov2_with_registers",
        "Dinov2WithRegistersForImageClassification",
        "dinov2_with_registers",
        "mean",
    ),
    OuterModel("vit", "ViTForImageClassification", "vit", "cls"),
    OuterModel("vit", "ViTForMaskedImageModeling", "vit", "grid"),
)


def find_outer(model: Any) -> OuterModel | None:
    """The entry of a model in `OUTER_MODELS`, or None."""
    for entry in OUTER_MODELS:
        kind = loaded_class(entry.folder, entry.model)
        if kind is not None and isinstance(model, kind):
            return entry
    return None


def all_tokens(model: Any, entry: OuterModel | None) -> str:
    """Why a model with a tower in it must be given all tokens (see `Adapter.all_tokens`), or ""."""
    if entry is not None and entry.reads == "grid":
        return f"{type(model).__name__} lays them out on the grid of the image"
    return own_code(model, "transformers", ["forward"])


class _Mean(PerThread):
    """The mean by mass `[b, c]` of the tokens that left the tower, until the classifier reads it."""

    value: Tensor | None = thread_local("value")


def connect_outer(
    tower: nn.Module, outer: nn.Module | None, prefix: int, attached: Attachment
) -> list[Undo]:
    """Make the outer model of a tower count masses, or refuse fewer tokens; returns the undo steps.

    Args:
        tower: the tower.
        outer: the model with the tower in it, if that is attached to; None: the tower itself is.
        prefix: tokens at the start of the sequence that the mean leaves out.
        attached: the recipe on it.
    """
    steps = [attached.recipe.step_at(stage) for stage in (Stage.BLOCK, Stage.FEATURES)]
    if not any(step is not None for step in steps):
        return []
    if outer is None:
        return [tower.register_forward_pre_hook(partial(_refuse, attached)).remove]
    entry = find_outer(outer)
    if entry is None or entry.reads != "mean" or all_tokens(outer, entry):
        return []
    found, classifier = _Mean(), outer.get_submodule("classifier")
    return [
        tower.register_forward_hook(partial(_remember, found, prefix)).remove,
        classifier.register_forward_pre_hook(partial(_replace, found)).remove,
    ]


def _refuse(attached: Attachment, tower: nn.Module, args: Any) -> None:
    """A pre-hook of a tower: raise if the caller is a model that takes a mean of its tokens."""
    del args
    if attached.restores or not attached.active:
        return
    if torch.compiler.is_dynamo_compiling():
        if _is_inside(id(tower)):  # compiled code has no frames
            raise AttachError(CALLED.format(model="the model with this tower in it"))
        return
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "forward":
            model = frame.f_locals.get("self")
            if model is not tower and _takes_all(model):
                raise AttachError(CALLED.format(model=type(model).__name__))
        frame = frame.f_back


def _is_inside(tower: int) -> bool:
    """Whether the module of this `id` is a child of a model that takes a mean; a constant when compiled."""
    modules = [one for one in gc.get_objects() if issubclass(type(one), nn.Module)]
    parents = [one for one in modules if any(id(child) == tower for child in one.children())]
    return any(_takes_all(model) for model in parents)


# As torch.compiler.assume_constant_result does, which would import the compiler.
_is_inside._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def _takes_all(model: Any) -> bool:
    """Whether a model reads all tokens of the tower in it, or may do so."""
    if not isinstance(model, nn.Module):
        return False
    entry = find_outer(model)
    return bool(unknown(model)) if entry is None else entry.reads != "cls"


def unknown(model: nn.Module) -> str:
    """Why fewer tokens are not safe in a model of transformers that is not in `OUTER_MODELS`, or ""."""
    kind = type(model)
    pools = kind.__name__.endswith("ForImageClassification") or "Masked" in kind.__name__
    if pools and kind.__module__.startswith("transformers."):
        return f"how {kind.__name__} reads the tokens after its tower is not known"
    return ""


CALLED = (
    "{model} reads all tokens that its vision tower returns, and a merged token would count once: attach "
    "to the whole model, which counts masses; or attach with restore=True, which restores all tokens"
)


def _remember(found: _Mean, prefix: int, tower: nn.Module, args: Any, output: Any) -> None:
    """A hook of the tower: compute the mean by mass of its output."""
    del tower, args
    x: Tensor = output[0]  # the last hidden state, [b, n, c]
    state = state_of(x)
    found.value = None if state.mass is None else mean(reduced_tokens(x, state), state.mass, prefix)


def _replace(found: _Mean, classifier: nn.Module, args: tuple[Tensor, ...]) -> Any:
    """A pre-hook of the classifier, whose input is the mean `[b, c]`, or CLS and the mean `[b, 2 * c]`."""
    del classifier
    average, found.value = found.value, None
    if average is None:
        return None
    x, c = args[0], average.shape[-1]
    return (torch.cat([x[..., : x.shape[-1] - c], average.to(x)], -1), *args[1:])
