"""Pictures of a reduction: which patches became which token, drawn over the photograph.

    attached = tokenzoo.build("tome").attach(vit, trace=True)
    vit(images)
    picture = merged_groups(images[0], attached.record, (14, 14), prefix=1)       # [3, H, W]

Each token of the end is one region, filled with the mean colour of its patches, with a thin line around
it; its patches need not touch. Dropped patches are dark and hatched. `gallery` sets many such pictures
side by side in a PNG; it is the only function here that needs matplotlib.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenzoo._core.needs import need
from tokenzoo._core.validation import check_count, check_kind, check_number, is_kind
from tokenzoo.errors import BadArgumentError
from tokenzoo.token_map import TokenMap
from tokenzoo.tools.pixels import (
    LINE,
    check_grid,
    check_image,
    darkened,
    edges,
    enlarged,
    line_colours,
    lined,
    mean_colours,
    patch_of_pixel,
)

GREY = "#444444"


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
    check_image(image)
    check_number("see_through", see_through, 0, 1)
    rows, columns = check_grid(grid)
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
    large = enlarged(image, grid)
    owner = plan.dst[index, prefix:].cpu()  # [rows * columns]
    group = owner[patch_of_pixel(grid, large.shape[1:])]  # [H, W]
    filled = torch.lerp(mean_colours(large, group, plan.kept), large, see_through)
    filled = torch.where(group < 0, darkened(large), filled)
    return lined(filled, edges(group), line_colours(group))


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
    check_image(image)
    large = enlarged(image, grid)
    patch = patch_of_pixel(grid, large.shape[1:])
    return lined(large, edges(patch), torch.tensor(LINE)[:, None, None])


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
            check_image(check_kind("panel", panel, Panel).picture)
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
    return need("matplotlib.figure", "viz", "matplotlib").Figure


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
