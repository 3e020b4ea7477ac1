"""Packed vision towers (Qwen2-VL and its successors): 2 x 2 groups, windows, rotary positions.

A group of 2 x 2 patches is one token: the tower's merger makes one token of the language model of it. All
images of a call are one sequence; an image, or one slice in time of a video, attends to itself alone, in
most blocks of Qwen2.5-VL within windows. What must stay in step with fewer groups: the angles, the
boundaries of images and windows, the order of the sequence (Qwen2.5-VL's is that of its windows, and is
undone after the merger). No forward is copied: the blocks are handed what fits, and two hooks at the end
put the rows in their places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from tokenzoo.adapter import Adapter, Attachment, BlockPath, computed
from tokenzoo.layouts import PackedLayout
from tokenzoo_adapters.common.sizes import mlp_width
from tokenzoo_adapters.hf import attention as hf_attention
from tokenzoo_adapters.hf.names import ANGLES, loaded_class
from tokenzoo_adapters.hf.vlm.packed_rows import PackedRows
from tokenzoo_adapters.hf.vlm.streams import DEEPSTACK, ExtraStream


@dataclass(frozen=True)
class PackedNames:
    """What a class of packed towers calls its parts.

    All have a `merger`, in them or as the projector of the whole model.

    Attributes:
        model: the class.
        layers: the list of its blocks.
        block: first norm, attention, second norm and MLP of a block.
        embed: what makes tokens of patches.
        norm: the norm of all tokens after the blocks, where the model projects what leaves it; "": the
            merger is given what leaves the last block, or `end` is.
        rotary: whether positions act inside the attention.
        end: the module that is given what leaves the last block, if that is not the merger, and if the
            merger is given one row for each group.
        streams: what leaves it in addition.
    """

    model: str
    layers: str = "blocks"
    block: tuple[str, str, str, str] = ("norm1", "attn", "norm2", "mlp")
    embed: str = "patch_embed"
    norm: str = ""
    rotary: bool = True
    end: str = ""
    streams: tuple[ExtraStream, ...] = ()


TOWERS = {
    "qwen2_vl": PackedNames("Qwen2VisionTransformerPretrainedModel"),
    "qwen2_5_vl": PackedNames("Qwen2_5_VisionTransformerPretrainedModel"),
    "qwen3_vl": PackedNames("Qwen3VLVisionModel", streams=(DEEPSTACK,)),
    "qwen3_vl_moe": PackedNames("Qwen3VLMoeVisionModel", streams=(DEEPSTACK,)),
    "qwen3_5": PackedNames("Qwen3_5VisionModel"),
    "qwen3_5_moe": PackedNames("Qwen3_5MoeVisionModel"),
    "glm4v": PackedNames("Glm4vVisionModel", end="post_layernorm"),
    "glm4v_moe": PackedNames("Glm4vMoeVisionModel", end="post_layernorm"),
    "cosmos3_edge": PackedNames(
        "Cosmos3EdgeVisionModel",
        layers="encoder.layers",
        block=("layer_norm1", "self_attn", "layer_norm2", "mlp"),
        embed="embeddings",
        norm="post_layernorm",
        rotary=False,
    ),
}
"""The towers that are followed, by folder of transformers.models."""


@dataclass(frozen=True, eq=False)
class HFPackedTower(Adapter):
    """A packed vision tower, alone or inside of a larger model.

    Args:
        tower: what it is about.
        names: of its parts.
        rows: its rows, image by image.
        at: its own name in the larger model, with a dot at the end; "" where it stands alone.
    """

    tower: Any
    names: PackedNames
    rows: PackedRows = field(repr=False)
    at: str = ""

    layout_class = PackedLayout
    uses_attention_interface = True
    provides = frozenset(
        {"x", "mass", "keys", "queries", "received_attention", "attention", "grid"}
    )

    @computed
    def stages(self) -> frozenset[str]:
        """Without a merger of its own a tower that stands alone projects nothing."""
        inside = {"block", "features"}
        return frozenset(inside if self.rows.merger is None else {*inside, "projected"})

    @computed
    def positional(self) -> bool:
        """Whether positions are rotary."""
        return self.names.rotary

    def provides_at(self, stage: str) -> frozenset[str]:
        """After the tower its attention is carried along as keys, queries and means."""
        return self.provides - {"attention"} if stage == "projected" else self.provides

    @computed
    def group(self) -> int:
        """Four: 2 x 2."""
        return int(self.tower.spatial_merge_size) ** 2

    @property
    def patches(self) -> int:
        """`group`, by its old name."""
        return self.group

    @property
    def streams(self) -> tuple[ExtraStream, ...]:
        """What leaves the tower in addition to its tokens, and follows them."""
        return self.rows.streams

    @computed
    def records(self) -> bool:
        """What leaves an inner block follows the tokens by their plan."""
        return bool(self.rows.streams)

    @computed
    def width(self) -> int:
        """Channels of a patch."""
        return int(self.tower.get_submodule(self.names.embed).embed_dim)

    @computed
    def mlp_dim(self) -> int:
        """Width of the MLP."""
        return mlp_width(self._layers()[0].mlp, self.width)

    def _layers(self) -> Any:
        return self.tower.get_submodule(self.names.layers)

    @computed
    def projector(self) -> str:
        """What makes one token of each group, if that is a part of the tower."""
        return f"{self.at}merger" if self.rows.inside else ""

    def passthrough_modules(self) -> tuple[str, ...]:
        """The final norm, if the model projects what leaves it."""
        return (self.at + self.names.norm,) if self.names.norm else ()

    @computed
    def reach(self) -> tuple[int, ...]:
        """A window of groups in the blocks that have windows."""
        window = self._side() ** 2
        return tuple(window if self._windowed(i) else 0 for i in range(len(self._layers())))

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
        first, attention, second, last = self.names.block
        return tuple(
            BlockPath(f"{self.at}{self.names.layers}.{i}", attention, second, last, first)
            for i in range(len(self._layers()))
        )

    def adapt_block_inputs(
        self, extra: tuple[Any, ...], options: dict[str, Any], places: Tensor | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Angles of the groups that are left `[t]`, and boundaries of what is left of each segment."""
        if places is None:
            return extra, options
        p = self.group
        bounds: Tensor = options["cu_seqlens"]
        at = places.to(bounds.device)
        before = torch.searchsorted(at, (bounds // p).to(at.dtype)) * p
        windows = len(bounds) - 1 > len(self.rows.state.grids or ())
        if windows and "flash" not in str(self.tower.config._attn_implementation):
            # Windows that have lost all their groups are none. This waits for the device, as does the
            # tower's own loop over them; an image always has groups left.
            before = cast("Tensor", cast("Any", before).unique_consecutive())
        changed: dict[str, Any] = {"cu_seqlens": before.to(bounds.dtype)}
        if self.names.rotary:
            rows = (places[:, None] * p + torch.arange(p, device=places.device)).flatten()  # [r]
            changed[ANGLES] = tuple(part[rows.to(part.device)] for part in options[ANGLES])
        return extra, {**options, **changed}

    def probe_inputs(self, index: int) -> tuple[int, dict[str, Any]]:
        """Eight groups in two segments, at any angles."""
        hf_attention.check(self.tower)
        n, p = 8, self.group
        first, attention, _, _ = self.names.block
        block = self._layers()[index]
        norm: Tensor = block.get_submodule(first).weight
        device = torch.device("cpu") if norm.is_meta else norm.device
        given: dict[str, Any] = {
            "cu_seqlens": torch.tensor([0, n * p // 2, n * p], dtype=torch.int32, device=device),
            "max_seqlen": n * p // 2,
        }
        if self.names.rotary:
            d = self.width // int(block.get_submodule(attention).num_heads)
            angles = torch.arange(n * p * d, dtype=torch.float32, device=device).view(n * p, d)
            given[ANGLES] = (angles.cos(), angles.sin())
        return n, given

    def layout(self, x: Tensor) -> PackedLayout:
        """Images, and slices in time of videos, in one sequence `[r, c]`."""
        return PackedLayout.checked(x, self.units(), self.order, group=self.group)

    def units(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of the groups of each image, and of each slice in time of a video."""
        return self.rows.grids()

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
        """Have the attention call the tap."""
        del proportional
        return hf_attention.install(self.tower)

    def connect(self, attached: Attachment) -> Callable[[], None]:
        """See the grids of a pass, and put the rows after the merger in their places."""
        del attached
        return self.rows.install()


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


def find_packed_tower(model: Any, at: str = "", merger: Any = None) -> HFPackedTower | None:
    """The adapter of a packed vision tower, if it is one of `TOWERS`.

    Args:
        model: the tower.
        at: its own name in the larger model, with a dot at the end.
        merger: what makes one token of each group, if that is no part of the tower.
    """
    for folder, names in TOWERS.items():
        kind = loaded_class(folder, names.model)
        if kind is not None and isinstance(model, kind):
            rows = PackedRows(
                model,
                merger,
                sorts=bool(getattr(model, "window_size", 0)),
                end=names.end,
                streams=names.streams,
            )
            return HFPackedTower(model, names, rows, at)
    return None
