"""What an adapter can ask about the recipe that was attached to its model, and what it says of a prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tokenzoo.budget import TokenBudget


@dataclass(frozen=True)
class TokenPlan:
    """How many tokens of an image, or of a frame of a video, enter the language model.

    Attributes:
        count: from the patch tokens of the image, crop or frame, and the frames of its video (1: an image).
        over_frames: whether these are a mean over the frames of a video, which may keep different numbers.
    """

    count: Callable[[int, int], int]
    over_frames: bool = False

    def __call__(self, tokens: int, frames: int = 1) -> int:
        """Count them."""
        return self.count(tokens, frames)


def _every(tokens: int, frames: int) -> int:
    del frames
    return tokens


EVERY = TokenPlan(_every)
"""All tokens enter the language model."""


class ActiveRecipe(Protocol):
    """What a language model can ask about the recipe that was attached."""

    @property
    def recipe(self) -> Any:
        """The `Recipe`."""
        ...

    @property
    def active(self) -> bool:
        """Whether a pass would reduce."""
        ...

    @property
    def options(self) -> Any:
        """The `Options` of `attach` (`tokenzoo.hooks.reduction`)."""
        ...

    def note_prompts(self, counts: tuple[int, ...]) -> None:
        """Receive how many visual tokens of each prompt are left in the language model."""
        ...


class Attachment(ActiveRecipe, Protocol):
    """What an adapter can ask about the recipe that was attached (`tokenzoo.hooks.handle.Attached`)."""

    @property
    def restores(self) -> bool:
        """Whether whatever reads the tower finds all tokens: by `restore=True`, or by the recipe."""
        ...

    def plan(self, tokens: int | None = None, frames: int = 1) -> TokenBudget:
        """The tokens at every point, for an image of so many, or a frame of a video."""
        ...

    @property
    def token_plan(self) -> TokenPlan:
        """How many tokens of images and videos the language model reads."""
        ...


class VisualTokens(Protocol):
    """One image or video of a prompt."""

    @property
    def full(self) -> int:
        """Placeholders that the processor writes for it."""
        ...

    @property
    def short(self) -> int:
        """Its tokens that enter the language model."""
        ...

    def entering(self, recipe: Any, layer: int) -> int:
        """Count its tokens that enter a layer, after the steps up to that layer."""
        ...


class EncodedVisual(VisualTokens, Protocol):
    """One image or video of a prompt, with what the tower encodes of it."""

    @property
    def patches(self) -> int:
        """Patch tokens of one unit where the tower begins; 0: not known."""
        ...

    @property
    def units(self) -> int:
        """Images, crops or frames that these tokens come from, each with as many."""
        ...
