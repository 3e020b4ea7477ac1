"""An image, or a clip, that several prompts of a batch ask about is encoded once."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokenzoo.hooks.handle import attached_to
from tokenzoo.recipe import Stage, Step

FRAMES = "_tokenzoo_frames"
"""The attribute of pixels in which every prompt has the same frames: how many."""


def encode_once(model: Any) -> None:
    """Let a LLaVA encode images once that `shown` has repeated for a batch of prompts.

    Hooks take the repetitions away before the tower, and put them back after the projector.
    """
    repeated: list[int] = []

    def narrow(tower: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        del tower
        pixels = args[0]  # [b, 3, H, W]
        repeated[:] = []
        one_image = len(pixels) > 1 and pixels.stride(0) == 0
        own = 1 if one_image else getattr(pixels, FRAMES, len(pixels))
        if own == len(pixels):
            return args
        repeated.append(len(pixels) // own)
        return (pixels[:own], *args[1:])

    def widen(projector: nn.Module, args: object, output: Tensor) -> Tensor:
        del projector, args
        return output.repeat(repeated.pop(), 1, 1) if repeated else output

    model.model.vision_tower.register_forward_pre_hook(narrow)
    model.model.multi_modal_projector.register_forward_hook(widen)


def shown(model: Any, image: Tensor, prompts: int) -> Tensor:
    """Repeat an image `[3, H, W]`, or the frames of a clip `[f, 3, H, W]`, for so many prompts.

    They are encoded once, unless what is attached to the model reads the prompt, and keeps other tokens for
    each; or works after the projector, and reads there what the tower's attention was for each image.

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
    """Whether a step wants the tower's answer for each prompt, not for each image."""
    needs = {need.partition("@")[0] for need in step.needs}
    return any(need.startswith("text") for need in needs) or (
        step.stage == Stage.PROJECTED and not needs <= {"x", "mass", "grid"}
    )
