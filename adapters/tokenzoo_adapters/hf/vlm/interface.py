"""What the hooks of a prompt need of the adapter of its model: `VisionLanguageAdapter` has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from tokenzoo_adapters.hf.vlm.placeholders import VisualSpan
from tokenzoo_adapters.hf.vlm.prompt_text import PromptCall, PromptText
from tokenzoo_adapters.hf.vlm.spec import Spans, VisionLanguageSpec


@dataclass(frozen=True)
class Placed:
    """A call whose images are encoded, and whose tokens have the positions of the whole prompt.

    Attributes:
        given: the arguments, with encoded images instead of pixels.
        positions: `[3, b, m]`.
        kept: by placeholder, of each image: which of its tokens are left, `[m]` ascending.
        after: `[b, 1]`, the position of what comes next.
    """

    given: dict[str, Any]
    positions: Tensor
    kept: dict[int, list[Tensor]]
    after: Tensor


class PromptAdapter(Protocol):
    """The adapter of a model that reads prompts with images."""

    @property
    def spec(self) -> VisionLanguageSpec:
        """The family of the model, as data."""
        ...

    @property
    def model(self) -> Any:
        """The model that was attached to."""
        ...

    @property
    def base(self) -> Any:
        """The bare model in it, without the language modelling head."""
        ...

    @property
    def prompt_text(self) -> PromptText:
        """The text of the call whose images are encoded."""
        ...

    def visuals(
        self, given: Mapping[str, Any], plan: Callable[[int], int]
    ) -> dict[int, list[VisualSpan]]:
        """The images and videos of a call, with the tokens that `plan` leaves of each."""
        ...

    def place(
        self,
        given: Mapping[str, Any],
        spans: Spans,
        start: Tensor | None = None,
        said: PromptCall | None = None,
    ) -> Placed:
        """Encode the images of a call, and place what is left of them."""
        ...
