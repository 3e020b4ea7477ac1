"""The vision towers of Qwen2-VL and Qwen2.5-VL: packed images, 2 x 2 groups, windows, rotary positions.

A group of 2 x 2 patches is one token: the tower's merger makes one token of the language model of it. All
images of a call are one sequence; an image, or one slice in time of a video, attends to itself alone, in
most blocks of Qwen2.5-VL within windows. What must stay in step with fewer groups: the angles, the
boundaries of images and windows, the order of the sequence (Qwen2.5-VL's is that of its windows, and is
undone after the merger). No forward is copied: the blocks get what fits, and two hooks at the end
put the rows in their places.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenzoo.adapter import Adapter, Attachment, BlockPath, computed
from tokenzoo.errors import AttachError
from tokenzoo.hooks import PerThread, Undo, get_state, thread_local, undo_all
from tokenzoo.layouts import PackedLayout
from tokenzoo_adapters.common.sizes import mlp_width
from tokenzoo_adapters.hf import attention as hf_attention
from tokenzoo_adapters.hf.names import ANGLES, LAST, POOLED, entering, loaded_class

TOWERS = {
    "qwen2_vl": "Qwen2VisionTransformerPretrainedModel",
    "qwen2_5_vl": "Qwen2_5_VisionTransformerPretrainedModel",
}
"""The towers that are followed, by folder of transformers.models."""


class Here(PerThread):
    """The pass of a tower that runs in this thread, or ran last.

    Attributes:
        grids: rows and columns of the groups of each unit.
        slices: how many units each image or video has.
        layout: of what left the tower; None: all is there.
        fills: whether the rows of each image are to be as many as in the bare model.
    """

    grids: tuple[tuple[int, int], ...] | None = thread_local("grids")
    slices: tuple[int, ...] = thread_local("slices")
    layout: PackedLayout | None = thread_local("layout")
    fills: bool | None = thread_local("fills")


@dataclass(frozen=True, eq=False)
class HFQwenTower(Adapter):
    """A vision tower of Qwen2-VL or Qwen2.5-VL, alone or inside of a larger model.

    Args:
        tower: what it is about.
        at: its own name in the larger model, with a dot after it; "" where it stands alone.
    """

    tower: Any
    at: str = ""
    here: Here = field(default_factory=Here, repr=False)

    layout_class = PackedLayout
    uses_attention_interface = True
    positional = True
    stages = frozenset({"block", "features", "projected"})
    provides = frozenset(
        {"x", "mass", "keys", "queries", "received_attention", "attention", "grid"}
    )

    def provides_at(self, stage: str) -> frozenset[str]:
        """Behind the tower its attention is carried along as keys, queries and means."""
        return self.provides - {"attention"} if stage == "projected" else self.provides

    @computed
    def group(self) -> int:
        """Four: 2 x 2."""
        return int(self.tower.spatial_merge_size) ** 2

    @property
    def patches(self) -> int:
        """`group`, by its old name."""
        return self.group

    @computed
    def width(self) -> int:
        """Channels of a patch."""
        return int(self.tower.patch_embed.embed_dim)

    @computed
    def mlp_dim(self) -> int:
        """Width of the MLP."""
        return mlp_width(self.tower.blocks[0].mlp, self.width)

    @computed
    def projector(self) -> str:
        """What makes one token of each group."""
        return f"{self.at}merger"

    @computed
    def reach(self) -> tuple[int, ...]:
        """A window of groups in the blocks that have windows."""
        window = self._side() ** 2
        return tuple(window if self._windowed(i) else 0 for i in range(len(self.tower.blocks)))

    def _side(self) -> int:
        """Groups along one side of a window; 0: there are no windows."""
        size = getattr(self.tower, "window_size", 0)
        return int(size) // int(self.tower.spatial_merge_size) // self._patch() if size else 0

    def _patch(self) -> int:
        return int(self.tower.patch_embed.patch_size)

    def _windowed(self, index: int) -> bool:
        return self._side() > 0 and index not in self.tower.fullatt_block_indexes

    def blocks(self) -> tuple[BlockPath, ...]:
        """All blocks."""
        return tuple(
            BlockPath(f"{self.at}blocks.{i}", "attn", "norm2", "mlp", "norm1")
            for i in range(len(self.tower.blocks))
        )

    def adapt_block_inputs(
        self, extra: tuple[Any, ...], options: dict[str, Any], places: Tensor | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Angles of the groups that are left `[t]`, and boundaries of what is left of each segment."""
        if places is None:
            return extra, options
        p, angles = self.group, options[ANGLES]
        bounds: Tensor = options["cu_seqlens"]
        at = places.to(bounds.device)
        before = torch.searchsorted(at, (bounds // p).to(at.dtype)) * p
        windows = len(bounds) - 1 > len(self.here.grids or ())
        if windows and "flash" not in str(self.tower.config._attn_implementation):
            # Windows that have lost all their groups are left out. This waits for the device, as does the
            # tower's own loop over them; an image always has groups left.
            before = cast("Tensor", cast("Any", before).unique_consecutive())
        rows = (places[:, None] * p + torch.arange(p, device=places.device)).flatten()  # [r]
        return extra, {
            **options,
            "cu_seqlens": before.to(bounds.dtype),
            ANGLES: tuple(part[rows.to(part.device)] for part in angles),
        }

    def probe_inputs(self, index: int) -> tuple[int, dict[str, Any]]:
        """Eight groups in two segments, at any angles."""
        hf_attention.check(self.tower)
        n, p = 8, self.group
        norm: Tensor = self.tower.blocks[index].norm1.weight
        device = torch.device("cpu") if norm.is_meta else norm.device
        d = self.width // int(self.tower.blocks[index].attn.num_heads)
        angles = torch.arange(n * p * d, dtype=torch.float32, device=device).view(n * p, d)
        return n, {
            "cu_seqlens": torch.tensor([0, n * p // 2, n * p], dtype=torch.int32, device=device),
            "max_seqlen": n * p // 2,
            ANGLES: (angles.cos(), angles.sin()),
        }

    def layout(self, x: Tensor) -> PackedLayout:
        """Images, and slices in time of videos, in one sequence `[r, c]`."""
        grids = self.units()
        orders = {grid: self.order(grid) for grid in dict.fromkeys(grids)}
        known = {grid: order.to(x.device) for grid, order in orders.items() if order is not None}
        layout = PackedLayout.of(grids, known, group=self.group)
        if layout.rows() != x.shape[0]:
            raise AttachError(
                f"{x.shape[0]} patches enter the first block, and the images of this pass have "
                f"{layout.rows()}: call the whole tower, with its grid_thw"
            )
        return layout

    def units(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of the groups of each image, and of each slice in time of a video."""
        if self.here.grids is None:
            raise AttachError(
                "a block of the tower was called by itself: call the tower, with its grid_thw"
            )
        return self.here.grids

    def order(self, grid: tuple[int, int]) -> Tensor | None:
        """Where each group of a unit, in raster order, is in its part of the sequence `[N]`.

        Qwen2.5-VL puts the groups of a window side by side; None: raster order.
        """
        if not self._side():
            return None
        index = window_index(grid, self._side())
        return torch.empty_like(index).scatter(0, index, torch.arange(len(index)))

    def windows(self, index: int, options: dict[str, Any]) -> tuple[Tensor, int] | None:
        """What a block with windows was handed as its segments."""
        if not self._windowed(index):
            return None
        return options["cu_seqlens"], self._side() ** 2 * self.group

    def install(self, proportional: bool) -> Callable[[], None]:
        """Open the door of the attention."""
        del proportional
        return hf_attention.install(self.tower)

    def connect(self, attached: Attachment) -> Callable[[], None]:
        """See the grids of a pass, and put the rows after the merger in their places."""
        del attached
        handles = [
            self.tower.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.tower.merger.register_forward_hook(self._spread),
            self.tower.register_forward_hook(self._gather),
        ]
        undo: list[Undo] = [handle.remove for handle in handles]
        return partial(undo_all, undo)

    def _begin(self, tower: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Remember the grids of the images that are given."""
        del tower
        grids = args[1] if len(args) > 1 else options.get("grid_thw")
        self.here.grids, self.here.layout = None, None
        if isinstance(grids, Tensor):
            rows: list[list[int]] = cast("Any", grids).tolist()
            side = int(self.tower.spatial_merge_size)
            self.here.slices = tuple(t for t, _, _ in rows)
            self.here.grids = tuple((h // side, w // side) for t, h, w in rows for _ in range(t))
            patches = entering(args, options)
            wanted = sum(t * h * w for t, h, w in rows)
            if isinstance(patches, Tensor) and patches.shape[0] != wanted:
                raise AttachError(
                    f"{patches.shape[0]} patches are given, and images and videos with the grids {rows} "
                    f"(slices, rows, columns) have {wanted}: pass both as the processor returns them"
                )

    def _spread(self, merger: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Where the tower goes on to sort all rows, give it as many; those that are missing are zero."""
        del merger
        layout = _layout_of(args[0])
        if layout is None or layout.kept is None or not self._side():
            return None
        whole = output.new_zeros(layout.whole, output.shape[1])
        return whole.index_copy(0, layout.kept.to(output.device), output)

    def _gather(self, tower: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """The rows of the groups that are left, in raster order, image by image."""
        del tower, args
        alone = isinstance(output, tuple)
        x: Tensor = cast("Any", output)[0] if alone else getattr(output, LAST)
        layout = _layout_of(x)
        self.here.layout = layout
        if layout is None or layout.kept is None:
            return None
        merged: Tensor = cast("Any", output)[1] if alone else getattr(output, POOLED)
        if self._side():
            merged = merged[layout.raster(merged.device)]
        if self.here.fills:
            merged = self._filled(merged, layout)
        if alone:
            return (x, merged, *cast("Any", output)[2:])
        setattr(output, POOLED, merged)
        return output

    def _filled(self, merged: Tensor, layout: PackedLayout) -> Tensor:
        """As many rows of each image as in the bare model: zeros after those that are left."""
        whole = [height * width for height, width in self.units()]
        counts = dict.fromkeys(range(len(whole)), 0)
        for bucket in layout.buckets:
            counts.update(dict.fromkeys(bucket.images, bucket.tokens))
        rows: list[int] = []
        begin = unit = 0
        for slices in self.here.slices:
            mine = range(unit, unit + slices)
            rows += range(begin, begin + sum(counts[i] for i in mine))
            begin, unit = begin + sum(whole[i] for i in mine), unit + slices
        index = torch.tensor(rows, device=merged.device)
        return merged.new_zeros(begin, merged.shape[1]).index_copy(0, index, merged)

    @contextmanager
    def filled(self) -> Generator[None]:
        """Within, the tower returns as many rows of each image as in the bare model, zeros at the end."""
        self.here.fills = True
        try:
            yield
        finally:
            self.here.fills = False

    def left(self) -> list[Tensor]:
        """Of each image and video of the last pass here, which of its groups are left: `[m]` each."""
        sizes = [height * width for height, width in self.units()]
        layout = self.here.layout
        units = [torch.arange(size) for size in sizes] if layout is None else layout.left()
        found: list[Tensor] = []
        unit = 0
        for slices in self.here.slices:
            mine = range(unit, unit + slices)
            found.append(torch.cat([units[i] + sizes[i] * (i - unit) for i in mine]))
            unit += slices
        return found


def window_index(grid: tuple[int, int], side: int) -> Tensor:
    """The groups of a grid `[N]`, window after window, each window in raster order.

    Args:
        grid: rows and columns of the groups.
        side: groups along one side of a window; those at the lower and right edge may be smaller.
    """
    rows, columns = torch.arange(grid[0])[:, None], torch.arange(grid[1])[None]
    across = -(-grid[1] // side)  # windows side by side
    window = (rows // side) * across + columns // side
    return window.flatten().argsort(stable=True)


def find_qwen_tower(model: Any, at: str = "") -> HFQwenTower | None:
    """The adapter of a vision tower of Qwen2-VL or Qwen2.5-VL, if it is one."""
    for folder, name in TOWERS.items():
        kind = loaded_class(folder, name)
        if kind is not None and isinstance(model, kind):
            return HFQwenTower(model, at)
    return None


def _layout_of(x: Tensor) -> PackedLayout | None:
    """The layout of a sequence of this tower; None: it carries none, or one of no images."""
    state = get_state(x)
    known = state is not None and bool(state.layout.buckets)
    return cast("PackedLayout", state.layout) if state is not None and known else None
