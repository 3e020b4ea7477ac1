"""What an adapter says of the prompts of a model: their text, images and videos, and their shortening."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from torch import Tensor

from tokenzoo.attachment import Attachment, EncodedVisual, TokenPlan
from tokenzoo.errors import AttachError, BadArgumentError
from tokenzoo.layouts import TokenLayout


class PromptMethods:
    """The methods of an `Adapter` that matter where there is a language model after the tower."""

    def text(self, stage: str) -> tuple[Tensor, Tensor]:
        """The text that came with each image of the current pass, where `provides_at` lists "text".

        It is called once in a pass, when a step at this stage that needs "text" removes tokens.

        Returns:
            Embeddings `[i, t, c]` of i images, crops or frames, in the order of the pass; c is that of the
            tokens at this stage. And `[i, t]` bool, False at padding.

        Raises:
            AttachError: no text came with the images.
        """
        raise AttachError(f"{type(self).__name__} knows no text of its images at {stage!r}")

    def videos(self, images: int) -> Sequence[int]:
        """The frames of each video of the current pass, where `provides_at` lists "frames".

        It is called once in a pass, when a step after the projector needs "frames".

        Args:
            images: how many images and frames the pass has.

        Returns:
            Of each video, in order, how many of them are its frames; 1 for an image.

        Raises:
            AttachError: it is not known which of them are a video.
        """
        raise AttachError(
            f"{type(self).__name__} does not know which of {images} images are a video"
        )

    def with_frames(self, frames: int) -> Self:
        """The same adapter where so many images of a call, one after the other, are the frames of a video.

        Raises:
            BadArgumentError: the model takes no images as frames.
        """
        raise BadArgumentError(
            f"frames={frames!r}: {type(self).__name__} takes no images of a prompt as the frames of a "
            "video; leave frames= out"
        )

    def note_videos(self, layout: TokenLayout) -> None:
        """Receive what a step over frames has left of the videos of a pass."""
        del layout

    def pool_frames(self, x: Tensor) -> Tensor:
        """What the model pools the frames of a video to, after its projector, if the tower left all tokens.

        Args:
            x: `[f, n, c]`, or other values of the same tokens.

        Returns:
            `[f, m, c]`; `x` itself where nothing is pooled.
        """
        return x

    def connect(self, attached: Attachment) -> Callable[[], None] | None:
        """Make whatever comes after the tower (prompts, a language model) follow what was attached.

        Returns:
            The function that undoes it.

        Raises:
            AttachError: the recipe and what comes after the tower do not go together.
        """
        del attached
        return None

    def shorten(self, attached: Attachment, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What a processor returned, with as many placeholders as visual tokens will come.

        Raises:
            AttachError: the model reads no prompts.
        """
        del attached, inputs
        raise AttachError(
            f"{type(self).__name__} adapts a vision tower, which has no prompts: attach to the whole "
            "model"
        )

    def visuals(
        self, given: Mapping[str, Any], plan: TokenPlan
    ) -> Mapping[int, Sequence[EncodedVisual]]:
        """The images and videos of a call, in the order of the prompts, by the id of their placeholder.

        `plan` maps the patch tokens of an image or frame to those of them that enter the language model.

        Raises:
            AttachError: the model reads no prompts.
        """
        del given, plan
        raise AttachError(
            f"{type(self).__name__} is of a vision tower, which reads no prompts: take the whole model's"
        )
