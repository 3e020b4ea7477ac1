"""Pictures of a reduction: which patches became which token, drawn over the photograph.

    attached = tokenzoo.build("tome").attach(vit, trace=True)
    vit(images)
    picture = merged_groups(images[0], attached.record, (14, 14), prefix=1)       # [3, H, W]

Each token of the end is one region, filled with the mean colour of its patches, with a thin line around
it; its patches need not touch. Dropped patches are dark and hatched. `gallery` sets many such pictures
side by side in a PNG; it is the only function here that needs matplotlib.
"""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenzoo._core.quoting import quote
from tokenzoo._core.validation import check_count, check_kind, check_number, is_kind
from tokenzoo.errors import BadArgumentError, MissingDependencyError
from tokenzoo.token_map import TokenMap
from tokenzoo.tokens import shape_of

SIDE = 448  # pixels of the shorter side that a picture has at least: room for thin lines
LINE = (1.0, 0.78, 0.24)  # amber: seen on ink, on paper and on most photographs
DARK = 0.22  # what is left of the light of a dropped patch
GREY = "#444444"
HATCH = 0.3  # light of the hatching, as a share of the line's


@dataclass(frozen=True)
class Panel:
    """One picture of a gallery.

    Attributes:
        picture: `[3, h, w]` in 0..1.
        note: a line below it.
        good: whether the note is good news (green) or bad (red); None: neither.
    """

    picture: Tensor
    note: str = ""
    good: bool | None = None


def merged_groups(
    image: Tensor,
    plan: TokenMap,
    grid: tuple[int, int],
    prefix: int,
    *,
    index: int = 0,
    see_through: float = 0.0,
) -> Tensor:
    """Draw which patches of an image are part of which token.

    Args:
        image: `[3, h, w]` in 0..1.
        plan: from the first tokens to the last, prefix tokens included: `attached.record`.
        grid: (rows, columns) of the patches.
        prefix: number of tokens before the patches.
        index: of the image in the plan's batch.
        see_through: opacity of the photograph over the fill: 0 hides it, 1 hides the fill.

    Returns:
        `[3, H, W]` in 0..1, an enlargement of the image.

    Raises:
        BadArgumentError: the plan, the grid and the image do not fit together.
    """
    _check_image(image)
    check_number("see_through", see_through, 0, 1)
    rows, columns = _check_grid(grid)
    check_count("prefix", prefix, least=0)
    b = check_kind("plan", plan, TokenMap).dst.shape[0]
    if check_count("index", index, least=0) >= b:
        raise BadArgumentError(f"index={index!r}; the plan has images 0 to {b - 1}")
    if rows < 1 or columns < 1 or plan.tokens != prefix + rows * columns:
        raise BadArgumentError(
            f"the plan begins with {plan.tokens} tokens; prefix={prefix} and a grid of {rows} x {columns} "
            f"make {prefix + rows * columns}: pass the model's own prefix and grid, and a plan that begins "
            "at its first tokens"
        )
    large = _enlarged(image, grid)
    owner = plan.dst[index, prefix:].cpu()  # [rows * columns]
    group = owner[_patch_of_pixel(grid, large.shape[1:])]  # [H, W]
    filled = torch.lerp(_mean_colours(large, group, plan.kept), large, see_through)
    filled = torch.where(group < 0, _darkened(large), filled)
    return _lined(filled, _edges(group), _line_colours(group))


def shrunk_image(image: Tensor, grid: tuple[int, int]) -> Tensor:
    """Draw a smaller image that a model was shown, with the grid of its patches.

    Args:
        image: the smaller image, `[3, h, w]` in 0..1.
        grid: (rows, columns) of its patches.

    Returns:
        `[3, H, W]` in 0..1, an enlargement that leaves the pixels visible.

    Raises:
        BadArgumentError: the image has another shape or dtype, or is smaller than the grid.
    """
    _check_image(image)
    large = _enlarged(image, grid)
    patch = _patch_of_pixel(grid, large.shape[1:])
    return _lined(large, _edges(patch), torch.tensor(LINE)[:, None, None])


def gallery(
    rows: Sequence[Sequence[Panel]],
    columns: Sequence[tuple[str, str]],
    path: str | Path,
    *,
    title: str = "",
    caption: str = "",
) -> Path:
    """Set pictures side by side, one row per image and one column per method, as a PNG.

    Args:
        rows: the panels; every row has one per column.
        columns: a name and a detail, to stand above each column.
        path: the file to write.
        title: text above the pictures.
        caption: text below the pictures, wrapped.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        BadArgumentError: no row, or a row of another length than `columns`.
    """
    if not rows or not columns or any(len(row) != len(columns) for row in rows):
        raise BadArgumentError(
            f"rows of {[len(row) for row in rows]} panels under {len(columns)} columns; a gallery has "
            "one panel per column in every row"
        )
    for column in columns:
        if not is_kind(column, tuple) or len(column) != 2:
            raise BadArgumentError(f"column={column!r}; it must be a pair of texts: (name, detail)")
    for row in rows:
        for panel in row:
            _check_image(check_kind("panel", panel, Panel).picture)
    width, height = 2.0 * len(columns) + 0.2, 2.2 * len(rows) + 1.45  # inches
    figure = figure_class()(figsize=(width, height), dpi=160)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for row, panels in enumerate(rows):
        for column, panel in enumerate(panels):
            _show(axes[row][column], panel)
    for column, heading in enumerate(columns):
        _head(axes[0][column], *heading)
    figure.subplots_adjust(
        left=0.1 / width,
        right=1 - 0.1 / width,
        top=1 - 0.85 / height,
        bottom=0.72 / height,
        wspace=0.05,
        hspace=0.14,
    )
    figure.text(0.5, 1 - 0.27 / height, title, fontsize=12.5, ha="center", weight="bold")
    wrapped = textwrap.fill(caption, max(40, round(16 * width)))
    figure.text(0.1 / width, 0.1 / height, wrapped, fontsize=8.5, color=GREY, va="bottom")
    figure.savefig(path, format="png", facecolor="white")
    return Path(path)


def figure_class() -> Any:
    """Matplotlib's `Figure`, without pyplot: no window, no state that others share.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise MissingDependencyError(
            "tokenzoo.tools.viz needs matplotlib for a gallery: pip install 'tokenzoo[viz]'"
        ) from error


def _show(axes: Any, panel: Panel) -> None:
    """Draw one panel."""
    axes.imshow(panel.picture.permute(1, 2, 0).numpy(), interpolation="antialiased")
    # A square box whatever the picture's shape, so that all headings and notes are in line.
    axes.set_box_aspect(1)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    colour = {True: "#1a7f37", False: "#c62828", None: GREY}[panel.good]
    axes.set_xlabel(panel.note, fontsize=9, color=colour, labelpad=3)


def _head(axes: Any, name: str, detail: str) -> None:
    """Write a column's heading as two texts: a text of two lines would not be on one baseline."""
    place = {"transform": axes.transAxes, "ha": "center", "va": "baseline"}
    axes.text(0.5, 1.13, name, fontsize=10, weight="bold", **place)
    axes.text(0.5, 1.04, detail, fontsize=8.5, color=GREY, **place)


def _check_image(image: Tensor) -> None:
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


def _check_grid(grid: tuple[int, int]) -> tuple[int, int]:
    sizes = tuple(grid) if is_kind(grid, tuple | list) else ()
    if len(sizes) != 2 or any(type(size) is not int for size in sizes):
        raise BadArgumentError(
            f"grid={quote(grid)}; it must be (rows, columns) of the patches, two ints"
        )
    return sizes


def _enlarged(image: Tensor, grid: tuple[int, int]) -> Tensor:
    """The image `[3, H, W]` on the CPU, its pixels repeated until thin lines look thin."""
    rows, columns = _check_grid(grid)
    h, w = image.shape[1:]
    if rows < 1 or columns < 1 or h < rows or w < columns:
        raise BadArgumentError(
            f"an image of {h} x {w} pixels has no grid of {rows} x {columns} patches"
        )
    scale = max(1, -(-SIDE // min(h, w)))
    large = image.detach().float().cpu().clamp(0, 1)
    return large.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def _patch_of_pixel(grid: tuple[int, int], size: Sequence[int]) -> Tensor:
    """The number of the patch that each pixel lies in, `[H, W]`."""
    (rows, columns), (h, w) = grid, size
    row = torch.arange(h) * rows // h
    column = torch.arange(w) * columns // w
    return row[:, None] * columns + column


def _mean_colours(image: Tensor, group: Tensor, groups: int) -> Tensor:
    """Every pixel in the mean colour of its group, `[3, H, W]`; group -1 gets any colour."""
    slot = torch.where(group < 0, groups, group).flatten()  # [H * W]
    # Double: a group can have a hundred thousand pixels, one added after the other.
    sums = torch.zeros(3, groups + 1, dtype=torch.float64)
    sums = sums.index_add(1, slot, image.flatten(1).double())
    sizes = slot.bincount(minlength=groups + 1).clamp_min(1)
    return (sums / sizes)[:, slot].view_as(image).float()


def _darkened(image: Tensor) -> Tensor:
    """Darken the image and hatch it diagonally, `[3, H, W]`."""
    h, w = image.shape[1:]
    step = max(4, min(h, w) // 40)
    diagonal = (torch.arange(h)[:, None] + torch.arange(w)) % step
    hatch = (diagonal < max(1, step // 5)).float() * HATCH
    return torch.maximum(DARK * image, hatch * torch.tensor(LINE)[:, None, None])


def _edges(group: Tensor) -> Tensor:
    """The outermost pixels of every group but -1, along its borders with others: bool `[H, W]`."""
    thick = max(1, min(group.shape) // 220)  # half of the line, each group drawing its own
    value = F.pad(group[None].float(), (thick,) * 4, mode="replicate")
    size = 2 * thick + 1
    highest = F.max_pool2d(value, size, 1)[0]
    lowest = -F.max_pool2d(-value, size, 1)[0]
    return (highest != lowest) & (group >= 0)


def _line_colours(group: Tensor) -> Tensor:
    """A colour per group, `[3, H, W]`: neighbours in number get hues far apart (golden angle)."""
    hue = (group * 0.61803398875) % 1.0
    shift = torch.tensor([0.0, 1 / 3, 2 / 3])[:, None, None]
    return 0.62 + 0.38 * (2 * torch.pi * (hue - shift)).cos()


def _lined(image: Tensor, edge: Tensor, line: Tensor) -> Tensor:
    """The image with its borders drawn in."""
    return torch.where(edge, 0.15 * image + 0.85 * line, image)
