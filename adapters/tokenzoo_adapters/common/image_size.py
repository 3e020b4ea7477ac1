"""Smaller images: the control that reduces nothing but the picture (stage "image")."""

from __future__ import annotations

import warnings

import torch.nn.functional as F
from torch import Tensor

from tokenzoo.errors import BudgetError
from tokenzoo.tokens import full_precision


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """Scale images `[b, 3, h, w]` down to `[b, 3, height, width]`, bilinearly and with antialiasing."""
    # In float32: on the CPU there is no antialiasing in half precision.
    small = F.interpolate(
        full_precision(image),
        size=(height, width),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )
    return small.to(image.dtype)


def check_configured(grid: tuple[int, int], tokens: int, dynamic_size: bool) -> None:
    """See that images of the configured size can be resized to a number of patches.

    Args:
        grid: (rows, columns) of the patches of an image of the configured size.
        tokens: patches to keep of such an image.
        dynamic_size: whether the model takes several sizes. Then this is a warning: images of another size
            may be resized, and a pass whose images cannot be raises the error.

    Raises:
        BudgetError: no grid near the configured shape has so many patches, and the model takes one size.
    """
    try:
        smaller_grid(grid, tokens)
    except BudgetError as error:
        if not dynamic_size:
            raise
        warnings.warn(
            f"{error}. The model takes images of several sizes, and this is the configured one: images of "
            "another size may be resized, and a pass whose images cannot be raises this error",
            stacklevel=9,  # the caller of Method.attach
        )


def smaller_grid(grid: tuple[int, int], tokens: int) -> tuple[int, int]:
    """The grid of exactly that many patches whose shape is nearest to that of `grid`.

    Raises:
        BudgetError: no grid of that many patches stays within a factor of 2 of the image's shape.
    """
    rows, columns = grid

    def stretch(height: int, width: int) -> float:
        sides = (height * columns, width * rows)
        # One division: of two shapes that are each other's turned by a right angle neither is nearer.
        return max(sides) / min(sides)

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
            f"an image of {rows} x {columns} patches cannot be resized to {tokens}: no rectangle near its "
            f"shape has that many; the nearest counts are {lower} and {upper}"
        )
    return found
