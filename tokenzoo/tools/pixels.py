"""Pixels of the pictures: enlarged images, regions and their mean colours, lines, hatching."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenzoo._core.quoting import quote
from tokenzoo._core.validation import is_kind
from tokenzoo.errors import BadArgumentError
from tokenzoo.tokens import shape_of

SIDE = 448  # pixels of the shorter side that a picture has at least: room for thin lines
LINE = (1.0, 0.78, 0.24)  # amber: seen on ink, on paper and on most photographs
DARK = 0.22  # what is left of the light of a dropped patch
HATCH = 0.3  # light of the hatching, as a share of the line's


def check_image(image: Tensor) -> None:
    """Raise unless it is one image.

    Raises:
        BadArgumentError: another shape or dtype.
    """
    if (
        not is_kind(image, Tensor)
        or image.ndim != 3
        or image.shape[0] != 3
        or not image.is_floating_point()
    ):
        raise BadArgumentError(
            f"image has shape {shape_of(image)} and dtype {getattr(image, 'dtype', None)}; one image is a "
            "float tensor [3, height, width] in 0..1"
        )


def check_grid(grid: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns.

    Raises:
        BadArgumentError: they are not two ints.
    """
    sizes = tuple(grid) if is_kind(grid, tuple | list) else ()
    if len(sizes) != 2 or any(type(size) is not int for size in sizes):
        raise BadArgumentError(
            f"grid={quote(grid)}; it must be (rows, columns) of the patches, two ints"
        )
    return sizes


def enlarged(image: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the image `[3, H, W]` on the CPU, its pixels repeated until thin lines look thin.

    Raises:
        BadArgumentError: the image is smaller than the grid.
    """
    rows, columns = check_grid(grid)
    h, w = image.shape[1:]
    if rows < 1 or columns < 1 or h < rows or w < columns:
        raise BadArgumentError(
            f"an image of {h} x {w} pixels has no grid of {rows} x {columns} patches"
        )
    scale = max(1, -(-SIDE // min(h, w)))
    large = image.detach().float().cpu().clamp(0, 1)
    return large.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def patch_of_pixel(grid: tuple[int, int], size: Sequence[int]) -> Tensor:
    """Return the number of the patch that each pixel lies in, `[H, W]`."""
    (rows, columns), (h, w) = grid, size
    row = torch.arange(h) * rows // h
    column = torch.arange(w) * columns // w
    return row[:, None] * columns + column


def mean_colours(image: Tensor, group: Tensor, groups: int) -> Tensor:
    """Return every pixel in the mean colour of its group, `[3, H, W]`; group -1 gets any colour."""
    slot = torch.where(group < 0, groups, group).flatten()  # [H * W]
    # Double: a group can have a hundred thousand pixels, one added after the other.
    sums = torch.zeros(3, groups + 1, dtype=torch.float64)
    sums = sums.index_add(1, slot, image.flatten(1).double())
    sizes = slot.bincount(minlength=groups + 1).clamp_min(1)
    return (sums / sizes)[:, slot].view_as(image).float()


def darkened(image: Tensor) -> Tensor:
    """Darken the image and hatch it diagonally, `[3, H, W]`."""
    h, w = image.shape[1:]
    step = max(4, min(h, w) // 40)
    diagonal = (torch.arange(h)[:, None] + torch.arange(w)) % step
    hatch = (diagonal < max(1, step // 5)).float() * HATCH
    return torch.maximum(DARK * image, hatch * torch.tensor(LINE)[:, None, None])


def edges(group: Tensor) -> Tensor:
    """Return the outermost pixels of every group but -1, along its borders with others: bool `[H, W]`."""
    thick = max(1, min(group.shape) // 220)  # half of the line, each group drawing its own
    value = F.pad(group[None].float(), (thick,) * 4, mode="replicate")
    size = 2 * thick + 1
    highest = F.max_pool2d(value, size, 1)[0]
    lowest = -F.max_pool2d(-value, size, 1)[0]
    return (highest != lowest) & (group >= 0)


def line_colours(group: Tensor, *, blue: bool = True) -> Tensor:
    """Return a colour per group, `[3, H, W]`: neighbours in number get hues far apart (golden angle).

    Args:
        group: of each pixel, `[H, W]`.
        blue: whether there are blue ones.
    """
    hue = (group * 0.61803398875) % 1.0
    hue = hue if blue else 0.78 + 0.68 * hue  # violet, red, yellow, green
    shift = torch.tensor([0.0, 1 / 3, 2 / 3])[:, None, None]
    return 0.62 + 0.38 * (2 * torch.pi * (hue - shift)).cos()


def lined(image: Tensor, edge: Tensor, line: Tensor) -> Tensor:
    """Return the image with its borders drawn in."""
    return torch.where(edge, 0.15 * image + 0.85 * line, image)
