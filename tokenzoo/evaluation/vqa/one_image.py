"""An image, or a clip, that several prompts of a batch ask about is encoded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MethodType
from typing import Any, cast

from torch import Tensor

from tokenzoo.hooks.handle import attached_to
from tokenzoo.layouts import TokenLayout
from tokenzoo.recipe import Step

FRAMES = "_tokenzoo_frames"
"""The attribute of pixels in which every prompt has the same frames: how many."""


def encode_once(model: Any) -> None:
    """Let a LLaVA encode images once that `shown` has repeated for a batch of prompts.

    What the tower and the projector, and a recipe in them, make of the images is repeated after both.
    """
    # A bound method, so that a copy of the model encodes with its own tower.
    model.model.get_image_features = MethodType(_features, model)


def _features(model: Any, pixel_values: Tensor, *args: Any, **options: Any) -> Any:
    base, own = model.model, _own(pixel_values)
    original: Callable[..., Any] = cast("Any", type(base)).get_image_features
    if own == len(pixel_values):
        return original(base, pixel_values, *args, **options)
    prompts = len(pixel_values) // own
    output = original(base, pixel_values[:own], *args, **options)
    output.pooler_output = [*output.pooler_output] * prompts
    attached = attached_to(model)
    if attached is not None:
        _repeat_videos(attached.adapter, prompts)
    return output


def _repeat_videos(adapter: Any, prompts: int) -> None:
    """Let the prompts have what a step over frames left of one clip, each."""
    left: TokenLayout | None = adapter.video_pass.left
    if left is not None:
        (one,) = left.buckets
        places = None if one.places is None else one.places.repeat(prompts, 1)  # [q, f * m]
        adapter.note_videos(left.with_buckets([replace(one, places=places)]))


def _own(pixels: Tensor) -> int:
    """How many of `pixels [b, 3, H, W]` are images or frames of their own; the others repeat them."""
    if len(pixels) > 1 and pixels.stride(0) == 0:
        return 1
    return getattr(pixels, FRAMES, len(pixels))


def shown(model: Any, image: Tensor, prompts: int) -> Tensor:
    """Repeat an image `[3, H, W]`, or the frames of a clip `[f, 3, H, W]`, for so many prompts.

    They are encoded once, unless what is attached to the model reads the prompt, and keeps other tokens for
    each.

    Returns:
        `[b, 3, H, W]`, or `[b * f, 3, H, W]`: all frames of the first prompt, then those of the next.
    """
    attached = attached_to(model)
    steps = () if attached is None else attached.recipe.steps
    reads = any(_reads_each(step) for step in steps)
    if image.ndim == 3:
        repeated = image.expand(prompts, -1, -1, -1)
        return repeated.contiguous() if reads else repeated
    repeated = image.repeat(prompts, 1, 1, 1)
    if not reads:
        setattr(repeated, FRAMES, len(image))
    return repeated


def _reads_each(step: Step) -> bool:
    """Whether a step reads the prompt."""
    return any(need.partition("@")[0].startswith("text") for need in step.needs)
