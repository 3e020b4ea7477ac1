"""A tiny model, what it is shown, and the recipe with which its adapter is tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tokenzoo._core.quoting import quote
from tokenzoo._core.validation import is_kind
from tokenzoo.errors import BadArgumentError, BudgetError
from tokenzoo.hooks.handle import Attached
from tokenzoo.recipe import Recipe
from tokenzoo.testing.broken import BrokenError
from tokenzoo.tokens import shape_of
from tokenzoo.zoo import Method, build


@dataclass(frozen=True)
class Run:
    """One pass of a model: how many tokens it keeps, and what is added to its images.

    Attributes:
        keep: share of the patch tokens that is kept.
        seed: 0: the images as they are given; otherwise that of noise that is added to them.
    """

    keep: float = 0.5
    seed: int = 0


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """Draw a pass: a budget that pairs in two sites reach, and images."""
    keep = draw(st.floats(0.3, 1.0).map(lambda share: round(share, 2)))
    return Run(keep, draw(st.integers(0, 2**16)))


@dataclass(frozen=True, eq=False, repr=False)
class Models:
    """Fresh models of one kind, all alike.

    Args:
        make: returns a model (in whatever mode; it is tried in eval mode), or is one.
        image: what it is called with, `[b, ...]` with at least two images, of the model's own size.
        recipe: a name, a `Recipe` or a `Method`: what is attached.
    """

    make: Callable[[], nn.Module] | nn.Module
    image: Tensor
    recipe: str | Recipe | Method = "evoprune"

    def __post_init__(self) -> None:
        if not callable(self.make):
            raise BadArgumentError(
                f"{quote(self.make)} is neither a model nor a function that makes one: "
                "check_adapter(make, image=...)"
            )
        if not is_kind(self.image, Tensor) or self.image.ndim < 2 or self.image.shape[0] < 2:
            raise BadArgumentError(
                f"image={shape_of(self.image)}; it must be a batch of at least two inputs of the model, a "
                "tensor"
            )

    def __repr__(self) -> str:
        recipe = self.recipe.recipe if isinstance(self.recipe, Method) else self.recipe
        return f"Models({self.name}, image, {recipe!r})"

    @property
    def name(self) -> str:
        """Of the function that makes the model; "make" where it has none that could be imported."""
        name: str = getattr(self.make, "__qualname__", "")
        return name if name.isidentifier() else "make"

    @cached_property
    def model(self) -> nn.Module:
        """The one that the others are copies of."""
        made = self.make if isinstance(self.make, nn.Module) else self.make()
        if not is_kind(made, nn.Module):
            raise BadArgumentError(
                f"{self!r}: make() returned {made!r}, which is not a torch module"
            )
        return made.eval()

    def fresh(self) -> nn.Module:
        """A copy of the model, with nothing attached."""
        return deepcopy(self.model)

    def images(self, run: Run) -> Tensor:
        """The images of a pass, `[b, ...]`."""
        if run.seed == 0 or not self.image.is_floating_point():
            return self.image
        generator = torch.Generator().manual_seed(run.seed)
        noise = torch.randn(self.image.shape, generator=generator, dtype=torch.float64)
        return self.image + noise.to(self.image)

    def attach(self, model: nn.Module, keep: float) -> Attached:
        """Attach the recipe, with this budget, or with more where so few blocks do not reach it."""
        recipe = self.recipe.recipe if isinstance(self.recipe, Method) else self.recipe
        for share in (keep, (1 + keep) / 2):
            try:
                attached = build(recipe, keep=share).attach(model)
            except BudgetError:
                continue
            try:  # a model that takes several sizes is attached to all the same
                if attached.adapter.tokens() is not None:
                    attached.plan()
                return attached
            except BudgetError:
                attached.detach()
        return build(recipe, keep=1.0).attach(model)


def outputs(value: object) -> list[Tensor]:
    """All real tensors in what a model returns: itself, or those of a tuple, a mapping, an output class."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        value = tuple(cast("Mapping[Any, object]", value).values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [t for item in cast("Sequence[object]", value) for t in outputs(item)]
    return []


def call(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The outputs of a model without gradients.

    Raises:
        BrokenError: there is none to look at.
    """
    with torch.no_grad():
        found = outputs(model(images))
    if not found:
        raise BrokenError("a model that returns real tensors", "none in its output")
    return found


def gap(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to the largest output; infinite where shapes differ."""
    if [t.shape for t in found] != [t.shape for t in expected]:
        return float("inf")
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        scale = max(float(other.detach().abs().max()), 1e-12)
        difference = float((one.detach() - other.detach()).abs().max()) / scale
        worst = difference if not difference <= worst else worst  # NaN is the worst
    return worst


class Attentions(TorchFunctionMode):
    """Lists the lengths of the self-attentions of a pass: fused calls, and `nn.MultiheadAttention`."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the length where queries and keys are equally many."""
        if func is F.scaled_dot_product_attention and len(args) > 1:
            if args[0].shape[-2] == args[1].shape[-2]:
                self.lengths.append(args[0].shape[-2])
        elif func is F.multi_head_attention_forward and args[0].shape[0] == args[1].shape[0]:
            self.lengths.append(args[0].shape[0])
        return func(*args, **(kwargs or {}))


def lengths(model: nn.Module, images: Tensor) -> list[int]:
    """The lengths of the self-attentions of one pass; empty where none is fused."""
    with Attentions() as seen:
        call(model, images)
    return seen.lengths
