"""Smaller images for timm's models: the control that reduces nothing but the picture (`downsample`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tokenzoo.errors import BudgetError
from tokenzoo.hooks.graph_capture import refuse_symbols
from tokenzoo.tokens import full_precision
from tokenzoo_adapters.timm.pool import put


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
    return partial(_unshrink, model, dynamic, before, handle)


def _unshrink(model: Any, dynamic: bool, before: Mapping[str, Any], handle: Any) -> None:
    handle.remove()
    model.dynamic_img_size = dynamic
    put(model.patch_embed, before)


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
        size = (small[0] * patch[0], small[1] * patch[1])
        # In float32: on the CPU there is no antialiasing in half precision.
        resized = F.interpolate(
            full_precision(image), size=size, mode="bilinear", antialias=True, align_corners=False
        )
        return (resized.to(image.dtype), *args[1:])


def smaller_grid(grid: tuple[int, int], tokens: int) -> tuple[int, int]:
    """The grid of exactly that many patches whose shape is nearest to that of `grid`.

    Raises:
        BudgetError: no grid of that many patches stays within a factor of 2 of the image's shape.
    """
    rows, columns = grid

    def stretch(height: int, width: int) -> float:
        ratio = height * columns / (width * rows)
        return max(ratio, 1 / ratio)

    def best(count: int) -> tuple[int, int] | None:
        sizes = [
            (h, count // h) for h in range(1, rows + 1) if count % h == 0 and count // h <= columns
        ]
        near = [size for size in sizes if stretch(*size) <= 2]
        return min(near, key=lambda size: stretch(*size), default=None)

    found = best(tokens)
    if found is None:
        lower = next((n for n in range(tokens, 0, -1) if best(n)), 1)
        upper = next((n for n in range(tokens, rows * columns + 1) if best(n)), rows * columns)
        raise BudgetError(
            f"an image of {rows} x {columns} patches cannot be made one of {tokens}: no rectangle near its "
            f"shape has so many; the nearest counts are {lower} and {upper}"
        )
    return found
