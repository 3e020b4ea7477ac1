"""Smaller images for timm's models: the control that reduces nothing but the picture (`downsample`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from tokenzoo.hooks import Undo, refuse_symbols, undo_all
from tokenzoo_adapters.common.image_size import check_configured, resized, smaller_grid
from tokenzoo_adapters.common.patching import put


def shrink(
    model: Any, grid: tuple[int, int], wanted: Callable[[int], int], *, dynamic_size: bool
) -> Callable[[], None]:
    """Resize the images to fewer patches; timm interpolates the positions.

    Args:
        model: one that can have `dynamic_img_size`.
        grid: (rows, columns) of the patches of an image of the configured size.
        wanted: maps the number of an image's patches to the number to keep.
        dynamic_size: whether the model takes images of several sizes as it is.

    Returns:
        An uninstaller.

    Raises:
        BudgetError: the model takes images of one size, and none near its shape has so many patches.
    """
    embed = model.patch_embed
    check_configured(grid, wanted(grid[0] * grid[1]), dynamic_size)
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
    undo: list[Undo] = [
        partial(put, embed, before),
        partial(put, model, {"dynamic_img_size": dynamic}),
        handle.remove,
    ]
    return partial(undo_all, undo)


@dataclass(frozen=True)
class _Shrink:
    """A pre-hook of the patch embedding: resize the images to the wanted number of patches."""

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
