"""An image that several prompts of a batch ask about is encoded once."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokenzoo.hooks.handle import attached_to


def encode_once(model: Any) -> None:
    """Let a LLaVA encode an image once that `shown` has repeated for a batch of prompts.

    Hooks take its repetitions away before the tower, and put them back after the projector.
    """
    repeated: list[int] = []

    def narrow(tower: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        del tower
        pixels = args[0]  # [b, 3, H, W]
        repeated[:] = []
        if len(pixels) == 1 or pixels.stride(0) != 0:
            return args
        repeated.append(len(pixels))
        return (pixels[:1], *args[1:])

    def widen(projector: nn.Module, args: object, output: Tensor) -> Tensor:
        del projector, args
        return output.expand(repeated.pop(), -1, -1) if repeated else output

    model.model.vision_tower.register_forward_pre_hook(narrow)
    model.model.multi_modal_projector.register_forward_hook(widen)


def shown(model: Any, image: Tensor, prompts: int) -> Tensor:
    """Repeat an image `[3, H, W]` for so many prompts: `[b, 3, H, W]`.

    It is encoded once, unless what is attached to the model reads the prompt, and keeps other tokens for
    each.
    """
    repeated = image.expand(prompts, -1, -1, -1)
    attached = attached_to(model)
    steps = () if attached is None else attached.recipe.steps
    reads = any(need.startswith("text") for step in steps for need in step.needs)
    return repeated.contiguous() if reads else repeated
