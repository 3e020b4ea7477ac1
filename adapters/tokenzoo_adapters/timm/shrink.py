"""Smaller images for timm's models: the control that reduces nothing but the picture (`downsample`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from tokenzoo.hooks.graph_capture import refuse_symbols
from tokenzoo.hooks.undo import undo_all
from tokenzoo_adapters.common.image_size import resized, smaller_grid
from tokenzoo_adapters.common.patching import put


def shrink(model: Any, grid: tuple[int, int], wanted: Callable[[int], int]) -> Callable[[], None]:
    """Resize the images to fewer patches; the positions are interpolated by timm itself.

    Args:
        model: one that can have `dynamic_img_size`.
        grid: of its own image size.
        wanted: maps an image's patch tokens to those to keep.

    Returns:
        The function that undoes it.

    Raises:
        BudgetError: no image near the shape of its own has so many patches.
    """
    embed = model.patch_embed
    smaller_grid(grid, wanted(grid[0] * grid[1]))
    before = {
        "strict_img_size": embed.strict_img_size,
        "flatten": embed.flatten,
        "output_fmt": embed.output_fmt,
    }
    dynamic = model.dynamic_img_size
    handle = embed.register_forward_pre_hook(_Shrink(wanted))
    # What timm itself sets for images of any size (dynamic_img_size=True).
    nhwc = type(embed.output_fmt)("NHWC")
    put(embed, {"strict_img_size": False, "flatten": False, "output_fmt": nhwc})
    model.dynamic_img_size = True
    undo: list[Callable[[], object]] = [
        partial(put, embed, before),
        partial(put, model, {"dynamic_img_size": dynamic}),
        handle.remove,
    ]
    return partial(undo_all, undo)


@dataclass(frozen=True)
class _Shrink:
    """A pre-hook of the patch embedding: resize the image so that it has the wanted patches."""

    wanted: Callable[[int], int]

    def __call__(self, embed: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        image = args[0]  # [b, 3, height, width]
        refuse_symbols(image)
        patch = embed.patch_size
        grid = (image.shape[-2] // patch[0], image.shape[-1] // patch[1])
        small = smaller_grid(grid, self.wanted(grid[0] * grid[1]))
        if small == grid:
            return args
        return (resized(image, small[0] * patch[0], small[1] * patch[1]), *args[1:])
