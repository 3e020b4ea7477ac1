"""The rows of a packed tower, image by image: which grids went in, and which groups came out.

A merger, in the tower or after it, makes one row of each group. Qwen2.5-VL sorts them from the order of
its windows to raster order by an index of all groups, and the model splits them by the grids of all images.
Hooks give both what they expect. What else leaves the tower (`streams`) gets the same rows.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, takewhile
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenzoo.errors import AttachError
from tokenzoo.hooks import PerThread, Undo, get_state, set_state, thread_local, undo_all
from tokenzoo.layouts import PackedLayout
from tokenzoo_adapters.hf.names import LAST, POOLED, entering
from tokenzoo_adapters.hf.vlm.streams import ExtraStream, carried, is_stream, mark, whole


class TowerPass(PerThread):
    """The pass of a tower that runs in this thread, or ran last.

    Attributes:
        grids: rows and columns of the groups of each image, or slice in time of a video.
        videos: slices in time of each image or video.
        layout: of what left the tower; None: all is there.
        fills: whether the rows of each image are to be as many as in the bare model.
        leaving: the state of what left the last block, on its way to the merger.
    """

    grids: tuple[tuple[int, int], ...] | None = thread_local("grids")
    videos: tuple[int, ...] | None = thread_local("videos")
    layout: PackedLayout | None = thread_local("layout")
    fills: bool | None = thread_local("fills")
    leaving: Any = thread_local("leaving")


class PackedRows:
    """The rows of one tower.

    Args:
        tower: a packed vision tower.
        merger: what makes one row of each group, if the tower has no `merger` of its own; None: nothing
            does.
        sorts: whether it sorts the rows at its end, from the order of its windows.
        end: the module that is given what leaves the last block, if that is not its merger.
        streams: what leaves it in addition.
    """

    def __init__(
        self,
        tower: Any,
        merger: Any,
        *,
        sorts: bool,
        end: str = "",
        streams: tuple[ExtraStream, ...] = (),
    ) -> None:
        self.tower = tower
        self.inside = hasattr(tower, "merger")
        self.merger = tower.merger if self.inside else merger
        self.sorts = sorts
        self.end = end
        self.streams = streams
        self.state = TowerPass()

    def install(self) -> Undo:
        """Install the hooks; return an uninstaller."""
        handles = [
            self.tower.register_forward_pre_hook(self.begin, with_kwargs=True),
            self.tower.register_forward_hook(self.gather),
        ]
        if self.merger is not None:
            handles.append(self.merger.register_forward_hook(self.spread))
            if self.end:
                end = self.tower.get_submodule(self.end)
                handles.append(end.register_forward_pre_hook(self.leave))
                handles.append(self.merger.register_forward_pre_hook(self.arrive))
        for stream in self.streams:
            heads = getattr(self.tower, stream.heads)
            handles += [head.register_forward_pre_hook(whole) for head in heads]
            handles += [head.register_forward_hook(mark) for head in heads]
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

    def videos(self) -> tuple[int, ...]:
        """Slices in time of each image (one) and video of the pass.

        Raises:
            AttachError: the tower was not called.
        """
        self.grids()
        return self.state.videos or ()

    def begin(self, tower: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """A pre-hook of the tower: remember the grids of the images."""
        del tower
        grids = args[1] if len(args) > 1 else options.get("grid_thw")
        self.state.grids = self.state.layout = self.state.leaving = None
        if not isinstance(grids, Tensor):
            return
        rows: list[list[int]] = cast("Any", grids).tolist()
        side = int(self.tower.spatial_merge_size)
        self.state.grids = tuple((h // side, w // side) for t, h, w in rows for _ in range(t))
        self.state.videos = tuple(t for t, _, _ in rows)
        patches = entering(args, options)
        wanted = sum(t * h * w for t, h, w in rows)
        if isinstance(patches, Tensor) and patches.shape[0] != wanted:
            raise AttachError(
                f"{patches.shape[0]} patches were passed, but images and videos with the grids {rows} "
                f"(slices, rows, columns) have {wanted}: pass both as the processor returns them"
            )

    def spread(self, merger: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """A hook of the merger: as many rows as are sorted or split, zeros where groups are missing."""
        del merger
        layout = _layout_of(args[0])
        if not self.inside:
            self.state.layout = layout
        if layout is None or layout.kept is None:
            return None
        if not self.inside:
            return self._filled(output, layout)
        if not self.sorts:
            return None
        whole = output.new_zeros(layout.whole, output.shape[1])
        return whole.index_copy(0, layout.kept.to(output.device), output)

    def leave(self, end: nn.Module, args: tuple[Tensor, ...]) -> None:
        """A pre-hook of the module after the last block: what it makes of the tokens loses their state."""
        del end
        self.state.leaving = get_state(args[0])

    def arrive(self, merger: nn.Module, args: tuple[Tensor, ...]) -> None:
        """A pre-hook of the merger: its input, one row for each group, gets the state back."""
        del merger
        state, self.state.leaving = self.state.leaving, None
        if state is not None:
            set_state(args[0], state)

    def gather(self, tower: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """A hook of the tower: the rows of the groups that are left, in raster order, image by image."""
        del tower, args
        alone = isinstance(output, tuple)
        x: Tensor = cast("Any", output)[0] if alone else getattr(output, LAST)
        layout = _layout_of(x)
        self.state.layout = layout
        if layout is None or layout.kept is None or not self.inside:
            return None
        merged: Tensor = cast("Any", output)[1] if alone else getattr(output, POOLED)
        if self.sorts:
            merged = merged[layout.raster(merged.device)]
        merged = self._filled(merged, layout)
        if alone:
            rest = list(cast("tuple[Any, ...]", output)[2:])
            rest = [self._follow(one, layout) if is_stream(one) else one for one in rest]
            return (x, merged, *rest)
        setattr(output, POOLED, merged)
        for stream in self.streams:
            setattr(output, stream.name, self._follow(getattr(output, stream.name), layout))
        return output

    def _follow(self, stream: list[Tensor], layout: PackedLayout) -> list[Tensor]:
        """The rows of a stream for the groups that are left."""
        return [self._filled(carried(rows, layout), layout) for rows in stream]

    def _filled(self, rows: Tensor, layout: PackedLayout) -> Tensor:
        """Where the model splits them: each row in its place, zeros where groups are missing."""
        if not self.state.fills:
            return rows
        whole = rows.new_zeros(layout.whole, rows.shape[1])
        return whole.index_copy(0, layout.raster(rows.device), rows)

    @contextmanager
    def filled(self) -> Generator[None]:
        """Within, the tower returns as many rows as the bare model, zeros where groups are missing."""
        self.state.fills = True
        try:
            yield
        finally:
            self.state.fills = False

    def left(self, sizes: Iterable[int]) -> list[Tensor]:
        """Of images and videos of the last pass here, which of their groups are left: `[m]` each.

        Args:
            sizes: groups of each in the bare model, in order; further ones are not read. The slices in time
                of a video may be counted together or each for itself.
        """
        total = sum(height * width for height, width in self.grids())
        layout = self.state.layout
        left = torch.arange(total) if layout is None else layout.raster(layout.device())
        ends = [*takewhile(lambda end: end < total, accumulate(sizes)), total]
        # One transfer for all: how many tokens are left before the end of each.
        found = torch.searchsorted(left, torch.tensor(ends, device=left.device))
        counts: list[int] = cast("Any", found).tolist()
        bounds = zip([0, *counts], counts, [0, *ends], strict=False)
        return [left[begin:end] - first for begin, end, first in bounds]


def _layout_of(x: Tensor) -> PackedLayout | None:
    """The layout of a sequence of this tower; None: it carries none, or one of no images."""
    state = get_state(x)
    known = state is not None and bool(state.layout.buckets)
    return cast("PackedLayout", state.layout) if state is not None and known else None
