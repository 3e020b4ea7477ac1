"""transformers' models around a vision tower: classifiers that take a mean, and one that needs the grid.

A classifier takes a plain mean over the tokens that leave its tower. Two hooks mend it: one remembers the
mean by mass when the tower has run, one puts it in the place of the plain one, which is the last thing that
the linear layer reads. Where the tower inside is attached to, it looks who calls it, and refuses these.
"""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenzoo.adapter import Attachment
from tokenzoo.errors import AttachError
from tokenzoo.hooks.state import PerThread, reduced_tokens, thread_local
from tokenzoo.recipe import Stage
from tokenzoo_adapters.common.own_code import own_code
from tokenzoo_adapters.common.pooling import mean, state_of


@dataclass(frozen=True)
class Around:
    """A class of models around a tower.

    Attributes:
        folder: of transformers.models.
        model: the class.
        tower: the tower's name in it.
        reads: of the tokens: "cls", their "mean" (in front of its `classifier`), or all on the "grid".
    """

    folder: str
    model: str
    tower: str
    reads: Literal["cls", "mean", "grid"]


AROUND = (
    Around("clip", "CLIPVisionModelWithProjection", "vision_model", "cls"),
    Around("clip", "CLIPForImageClassification", "vision_model", "mean"),
    Around("siglip", "SiglipForImageClassification", "vision_model", "mean"),
    Around("siglip2", "Siglip2ForImageClassification", "vision_model", "mean"),
    Around("dinov2", "Dinov2ForImageClassification", "dinov2", "mean"),
    Around(
        "dinov2_with_registers",
        "Dinov2WithRegistersForImageClassification",
        "dinov2_with_registers",
        "mean",
    ),
    Around("vit", "ViTForImageClassification", "vit", "cls"),
    Around("vit", "ViTForMaskedImageModeling", "vit", "grid"),
)


def find_around(model: Any) -> Around | None:
    """What is known about a model around a tower, if it is one."""
    for around in AROUND:
        module = sys.modules.get(f"transformers.models.{around.folder}.modeling_{around.folder}")
        kind = getattr(module, around.model, None)
        if kind is not None and isinstance(model, kind):
            return around
    return None


def all_tokens(model: Any, around: Around | None) -> str:
    """Why a model around a tower must be given all tokens (see `Adapter.all_tokens`), or ""."""
    if around is not None and around.reads == "grid":
        return f"{type(model).__name__} lays them out on the grid of the image"
    return own_code(model, "transformers", ["forward"])


class _Mean(PerThread):
    """The mean by mass `[b, c]` of the tokens that left the tower, on its way to the classifier."""

    value: Tensor | None = thread_local("value")


def connect(
    tower: nn.Module, outer: nn.Module | None, prefix: int, attached: Attachment
) -> list[Callable[[], object]]:
    """Make a model around a tower count masses, or refuse fewer tokens; returns the undoings.

    Args:
        tower: that is attached to, or the one inside `outer`.
        outer: what is attached to, where that is a model around the tower; None: the tower itself is.
        prefix: tokens at the start of the sequence of which no mean is taken.
        attached: what was attached.
    """
    steps = [attached.recipe.step_at(stage) for stage in (Stage.BLOCK, Stage.FEATURES)]
    if not any(step is not None for step in steps):
        return []
    if outer is None:
        return [tower.register_forward_pre_hook(partial(_refuse, attached)).remove]
    around = find_around(outer)
    if around is None or around.reads != "mean" or all_tokens(outer, around):
        return []
    found, classifier = _Mean(), outer.get_submodule("classifier")
    return [
        tower.register_forward_hook(partial(_remember, found, prefix)).remove,
        classifier.register_forward_pre_hook(partial(_replace, found)).remove,
    ]


def _refuse(attached: Attachment, tower: nn.Module, args: Any) -> None:
    """A pre-hook of a tower: a model that takes a mean of what it returns is not its caller."""
    del args
    if attached.restores or not attached.active:
        return
    if torch.compiler.is_dynamo_compiling():
        if _is_inside(id(tower)):  # there are no frames to look at
            raise AttachError(CALLED.format(model="a model around this tower"))
        return
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "forward":
            model = frame.f_locals.get("self")
            if model is not tower and _takes_all(model):
                raise AttachError(CALLED.format(model=type(model).__name__))
        frame = frame.f_back


def _is_inside(tower: int) -> bool:
    """Whether the module of this `id` is a child of a model that takes a mean; asked once a compilation."""
    modules = [one for one in gc.get_objects() if issubclass(type(one), nn.Module)]
    around = [one for one in modules if any(id(child) == tower for child in one.children())]
    return any(_takes_all(model) for model in around)


# As torch.compiler.assume_constant_result does, which would import the compiler.
_is_inside._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def _takes_all(model: Any) -> bool:
    """Whether a model reads all tokens of the tower inside it, as far as that is known."""
    if not isinstance(model, nn.Module):
        return False
    around = find_around(model)
    return bool(unknown(model)) if around is None else around.reads != "cls"


def unknown(model: nn.Module) -> str:
    """Why fewer tokens are not safe in a model of transformers that nobody here knows, or ""."""
    kind = type(model)
    pools = kind.__name__.endswith("ForImageClassification") or "Masked" in kind.__name__
    if pools and kind.__module__.startswith("transformers."):
        return f"how {kind.__name__} reads the tokens after its tower is not known"
    return ""


CALLED = (
    "{model} reads all tokens that its vision tower returns, and a merged one would count once: attach to "
    "the whole model, which counts masses; or attach with restore=True, which gives all tokens back"
)


def _remember(found: _Mean, prefix: int, tower: nn.Module, args: Any, output: Any) -> None:
    """A hook of the tower: take the mean of what leaves it."""
    del tower, args
    x: Tensor = output[0]  # the last hidden state, [b, n, c]
    state = state_of(x)
    found.value = None if state.mass is None else mean(reduced_tokens(x, state), state.mass, prefix)


def _replace(found: _Mean, classifier: nn.Module, args: tuple[Tensor, ...]) -> Any:
    """A pre-hook of the classifier: it reads the plain mean `[b, c]`, or CLS and that, `[b, 2 * c]`."""
    del classifier
    average, found.value = found.value, None
    if average is None:
        return None
    x, c = args[0], average.shape[-1]
    return (torch.cat([x[..., : x.shape[-1] - c], average.to(x)], -1), *args[1:])
