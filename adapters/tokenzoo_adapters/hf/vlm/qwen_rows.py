"""The rows of a packed tower, image by image: which grids went in, and which groups came out.

A tower of Qwen's returns one row for each group, which its merger makes. Qwen2.5-VL sorts them from the
order of its windows to raster order by an index of all groups, and the model splits them by the grids of
all images. Three hooks give both what they expect.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenzoo.errors import AttachError
from tokenzoo.hooks import PerThread, Undo, get_state, thread_local, undo_all
from tokenzoo.layouts import PackedLayout
from tokenzoo_adapters.hf.names import LAST, POOLED, entering


class TowerPass(PerThread):
    """The pass of a tower that runs in this thread, or ran last.

    Attributes:
        grids: rows and columns of the groups of each image, or slice in time of a video.
        slices: how many grids each image or video has.
        layout: of what left the tower; None: all is there.
        fills: whether the rows of each image are to be as many as in the bare model.
    """

    grids: tuple[tuple[int, int], ...] | None = thread_local("grids")
    slices: tuple[int, ...] = thread_local("slices")
    layout: PackedLayout | None = thread_local("layout")
    fills: bool | None = thread_local("fills")


class PackedRows:
    """The rows of one tower.

    Args:
        tower: a vision tower of Qwen2-VL or Qwen2.5-VL.
        sorts: whether it sorts the rows at its end, from the order of its windows.
    """

    def __init__(self, tower: Any, *, sorts: bool) -> None:
        self.tower = tower
        self.sorts = sorts
        self.state = TowerPass()

    def install(self) -> Undo:
        """Install the hooks; return an uninstaller."""
        handles = [
            self.tower.register_forward_pre_hook(self.begin, with_kwargs=True),
            self.tower.merger.register_forward_hook(self.spread),
            self.tower.register_forward_hook(self.gather),
        ]
        return partial(undo_all, [handle.remove for handle in handles])

    def grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of the groups of each image, and of each slice in time of a video.

        Raises:
            AttachError: the tower was not called.
        """
        if self.state.grids is None:
            raise AttachError(
                "a block of the vision tower was called on its own: call the tower, with its grid_thw"
            )
        return self.state.grids

    def begin(self, tower: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """A pre-hook of the tower: remember the grids of the images."""
        del tower
        grids = args[1] if len(args) > 1 else options.get("grid_thw")
        self.state.grids, self.state.layout = None, None
        if not isinstance(grids, Tensor):
            return
        rows: list[list[int]] = cast("Any", grids).tolist()
        side = int(self.tower.spatial_merge_size)
        self.state.slices = tuple(t for t, _, _ in rows)
        self.state.grids = tuple((h // side, w // side) for t, h, w in rows for _ in range(t))
        patches = entering(args, options)
        wanted = sum(t * h * w for t, h, w in rows)
        if isinstance(patches, Tensor) and patches.shape[0] != wanted:
            raise AttachError(
                f"{patches.shape[0]} patches were passed, but images and videos with the grids {rows} "
                f"(slices, rows, columns) have {wanted}: pass both as the processor returns them"
            )

    def spread(self, merger: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """A hook of the merger: as many rows as the tower sorts, zeros where groups are missing."""
        del merger
        layout = _layout_of(args[0])
        if layout is None or layout.kept is None or not self.sorts:
            return None
        whole = output.new_zeros(layout.whole, output.shape[1])
        return whole.index_copy(0, layout.kept.to(output.device), output)

    def gather(self, tower: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """A hook of the tower: the rows of the groups that are left, in raster order, image by image."""
        del tower, args
        alone = isinstance(output, tuple)
        x: Tensor = cast("Any", output)[0] if alone else getattr(output, LAST)
        layout = _layout_of(x)
        self.state.layout = layout
        if layout is None or layout.kept is None:
            return None
        merged: Tensor = cast("Any", output)[1] if alone else getattr(output, POOLED)
        if self.sorts:
            merged = merged[layout.raster(merged.device)]
        if self.state.fills:
            merged = self._filled(merged, layout)
        if alone:
            return (x, merged, *cast("Any", output)[2:])
        setattr(output, POOLED, merged)
        return output

    def _filled(self, merged: Tensor, layout: PackedLayout) -> Tensor:
        """As many rows of each image as in the bare model: zeros after those that are left."""
        whole = [height * width for height, width in self.grids()]
        counts = dict.fromkeys(range(len(whole)), 0)
        for bucket in layout.buckets:
            counts.update(dict.fromkeys(bucket.images, bucket.tokens))
        rows: list[int] = []
        begin = grid = 0
        for slices in self.state.slices:
            mine = range(grid, grid + slices)
            rows += range(begin, begin + sum(counts[i] for i in mine))
            begin, grid = begin + sum(whole[i] for i in mine), grid + slices
        index = torch.tensor(rows, device=merged.device)
        return merged.new_zeros(begin, merged.shape[1]).index_copy(0, index, merged)

    @contextmanager
    def filled(self) -> Generator[None]:
        """Within, the tower returns as many rows of each image as in the bare model, zeros at the end."""
        self.state.fills = True
        try:
            yield
        finally:
            self.state.fills = False

    def left(self) -> list[Tensor]:
        """Of each image and video of the last pass here, which of its groups are left: `[m]` each."""
        sizes = [height * width for height, width in self.grids()]
        layout = self.state.layout
        parts = [torch.arange(size) for size in sizes] if layout is None else layout.left()
        found: list[Tensor] = []
        grid = 0
        for slices in self.state.slices:
            mine = range(grid, grid + slices)
            found.append(torch.cat([parts[i] + sizes[i] * (i - grid) for i in mine]))
            grid += slices
        return found


def _layout_of(x: Tensor) -> PackedLayout | None:
    """The layout of a sequence of this tower; None: it carries none, or one of no images."""
    state = get_state(x)
    known = state is not None and bool(state.layout.buckets)
    return cast("PackedLayout", state.layout) if state is not None and known else None
