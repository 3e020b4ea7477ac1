"""What the hooks of a prompt need of the adapter of its model: `VisionLanguageAdapter` has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from tokenzoo.adapter import TokenPlan
from tokenzoo_adapters.hf.vlm.placeholders import VisualSpan
from tokenzoo_adapters.hf.vlm.prompt_text import PromptCall, PromptText
from tokenzoo_adapters.hf.vlm.spec import Spans, VisionLanguageSpec


@dataclass(frozen=True)
class EncodedCall:
    """The encoded images of a call.

    Attributes:
        outputs: by kind ("image", "video"), what the model's features method returned.
        kept: by placeholder, of each image: which of its tokens are left, `[m]` ascending.
        whole: the arguments of the call, with the prompt of the caller.
    """

    outputs: dict[str, Any]
    kept: dict[int, list[Tensor]]
    whole: Mapping[str, Any]

    def counted(self, spans: Spans) -> Spans:
        """The images and videos with as many tokens as are left of each."""
        return {
            token: [
                replace(span, short=len(left), shared=False)
                for span, left in zip(several, self.kept[token], strict=True)
            ]
            for token, several in spans.items()
        }


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

    def visuals(self, given: Mapping[str, Any], plan: TokenPlan) -> dict[int, list[VisualSpan]]:
        """The images and videos of a call, with the tokens that `plan` leaves of each."""
        ...

    def encode(
        self, given: Mapping[str, Any], spans: Spans, said: PromptCall | None = None
    ) -> EncodedCall:
        """Encode the images of a call."""
        ...

    def place(
        self,
        given: Mapping[str, Any],
        spans: Spans,
        start: Tensor | None = None,
        said: PromptCall | None = None,
        encoded: EncodedCall | None = None,
        index: Tensor | None = None,
    ) -> Placed:
        """Encode the images of a call, and place what is left of them."""
        ...
