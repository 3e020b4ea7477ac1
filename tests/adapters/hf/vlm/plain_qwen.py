"""The vision towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL written out again, as plainly as it goes.

One image at a time, its groups always in raster order, every attention a dense map with a mask. Of the
model only its layers with weights are used: no boundaries, no window order, no packed sequence, nothing of
tokenzoo. What happens between the attention and the MLP of a block is handed in. What inner blocks hand the
language model (deepstack) keeps lists of what each group is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Deep:
    """What one block hands the language model, and what has become of it since.

    Attributes:
        rows: `[n, c']`, of the groups at that block.
        parts: for each group that is left, the rows that it is made of, with their masses then.
    """

    rows: Tensor
    parts: list[list[tuple[int, float]]]

    def now(self) -> Tensor:
        """The mean by mass for each group that is left."""
        means: list[Tensor] = []
        for own in self.parts:
            total = sum(mass for _, mass in own)
            means.append(sum(self.rows[i] * (mass / total) for i, mass in own))  # pyright: ignore
        return torch.stack(means)


@dataclass(frozen=True)
class Image:
    """The groups of an image, or of one slice in time of a video.

    Attributes:
        x: `[n, p, c]`, the patches of each group.
        place: `[n]`, which of the first groups, in raster order, each one is.
        mass: `[n]`.
        columns: of the whole grid of groups.
        deep: what inner blocks hand the language model.
    """

    x: Tensor
    place: Tensor
    mass: Tensor
    columns: int
    deep: tuple[Deep, ...] = ()


@dataclass(frozen=True)
class Shown:
    """What an attention does: queries and keys `[h, r, d]`, the map `[h, r, r]` of all r patches."""

    query: Tensor
    key: Tensor
    map: Tensor


Between = Callable[[int, int, Image, Shown], Image]
"""Block, image (its number in the pass), its groups after the attention, and what that did."""


def images(tower: Any, pixels: Tensor, grids: Sequence[Sequence[int]]) -> list[Image]:
    """The images of a pass, and the slices of its videos, before the first block."""
    p = tower.spatial_merge_size**2
    patches = tower.patch_embed(pixels)
    found: list[Image] = []
    for t, h, w in grids:
        for _ in range(t):
            own, patches = patches[: h * w], patches[h * w :]
            own = own + learned(tower, h, w)
            n = h * w // p
            x = own.reshape(n, p, -1)
            found.append(
                Image(
                    x,
                    torch.arange(n),
                    torch.ones(n, device=x.device),
                    w // tower.spatial_merge_size,
                )
            )
    return found


def learned(tower: Any, h: int, w: int) -> Tensor:
    """Learned positions, resized to a grid: `[h * w, c]`, group by group; 0: there are none."""
    if not hasattr(tower, "pos_embed"):
        return torch.zeros(1)
    table, side = tower.pos_embed.weight, tower.num_grid_per_side
    table = table.view(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(table, (h, w), mode="bilinear", align_corners=True)[0]  # [c, h, w]
    g = tower.spatial_merge_size
    apart = grid.reshape(-1, h // g, g, w // g, g).permute(1, 3, 2, 4, 0)
    return apart.reshape(h * w, -1)


def angles(tower: Any, image: Image, width: int) -> Tensor:
    """The angle of each channel of a head, for each patch: `[r, d]`."""
    side = tower.spatial_merge_size
    inside = torch.arange(side * side)
    row = (image.place[:, None] // image.columns * side + inside // side).flatten()
    column = (image.place[:, None] % image.columns * side + inside % side).flatten()
    turn = 10000.0 ** -(torch.arange(0, width // 2, 2) / (width // 2))  # [d / 4]
    return torch.cat([row[:, None] * turn, column[:, None] * turn], 1).float().repeat(1, 2)


def rotated(x: Tensor, angle: Tensor) -> Tensor:
    """Turn the pairs (i, i + d / 2) of `x [h, r, d]`."""
    one, two = x.float().chunk(2, -1)
    return (x.float() * angle.cos() + torch.cat([-two, one], -1) * angle.sin()).to(x.dtype)


def window_of(tower: Any, index: int, image: Image) -> Tensor:
    """A number for each group `[n]`, the same for those that see each other in a block."""
    size = getattr(tower, "window_size", 0)
    if not size or index in tower.fullatt_block_indexes:
        return torch.zeros_like(image.place)
    side = size // tower.patch_size // tower.spatial_merge_size
    row, column = image.place // image.columns, image.place % image.columns
    return row // side * 1000 + column // side


def attended(
    tower: Any, index: int, image: Image, *, proportional: bool = False
) -> tuple[Image, Shown]:
    """The first half of a block."""
    block = tower.blocks[index]
    n, p, c = image.x.shape
    heads = block.attn.num_heads
    qkv = block.attn.qkv(block.norm1(image.x.reshape(n * p, c)))
    query, key, value = qkv.reshape(n * p, 3, heads, -1).permute(1, 2, 0, 3)  # [h, r, d] each
    angle = angles(tower, image, query.shape[-1])
    query, key = rotated(query, angle), rotated(key, angle)
    logits = (query @ key.mT).float() * query.shape[-1] ** -0.5
    if proportional:
        logits = logits + image.mass.log().repeat_interleave(p)
    window = window_of(tower, index, image).repeat_interleave(p)
    whole = logits.masked_fill(window[:, None] != window, -torch.inf).softmax(-1)
    out = (whole.to(value.dtype) @ value).transpose(0, 1).reshape(n * p, c)
    x = image.x + block.attn.proj(out).reshape(n, p, c)
    return replace(image, x=x), Shown(query, key, whole)


def run(
    tower: Any,
    pixels: Tensor,
    grids: Sequence[Sequence[int]],
    between: Between | None = None,
    *,
    proportional: bool = False,
) -> list[Image]:
    """The groups of each image after the last block."""
    found = images(tower, pixels, grids)
    for index, block in enumerate(tower.blocks):
        for i, image in enumerate(found):
            image, shown = attended(tower, index, image, proportional=proportional)
            if between is not None:
                image = between(index, i, image, shown)
            n, p, c = image.x.shape
            more = block.mlp(block.norm2(image.x.reshape(n * p, c)))
            image = replace(image, x=image.x + more.reshape(n, p, c))
            found[i] = replace(image, deep=(*image.deep, *handed(tower, index, image)))
    return found


def handed(tower: Any, index: int, image: Image) -> list[Deep]:
    """What a block hands the language model, if it is one of those that do."""
    blocks = list(getattr(tower, "deepstack_visual_indexes", ()))
    if index not in blocks:
        return []
    rows = tower.deepstack_merger_list[blocks.index(index)](image.x.flatten(0, 1))
    return [Deep(rows, [[(i, float(mass))] for i, mass in enumerate(image.mass)])]


def streams(found: Sequence[Image]) -> list[Tensor]:
    """What the language model is handed of each such block, image after image: `[t, channels]`."""
    return [
        torch.cat([deep.now() for deep in own])
        for own in zip(*(i.deep for i in found), strict=True)
    ]


def merged(tower: Any, found: Sequence[Image]) -> Tensor:
    """What the tower's merger makes of them, image after image: `[t, channels]`."""
    return tower.merger(torch.cat([image.x.flatten(0, 1) for image in found]))


def joined(image: Image, keep: Tensor, dst: Tensor) -> Image:
    """A plan, carried out group by group: each output is the mean by mass of its inputs, patch by patch.

    Args:
        image: n groups.
        keep: `[m]`, the group that each output stands for.
        dst: `[n]`, the output that each group becomes a part of; -1: none.
    """
    x: list[Tensor] = []
    mass: list[Tensor] = []
    parts: list[list[list[tuple[int, float]]]] = [[] for _ in image.deep]
    for slot in range(len(keep)):
        members = [i for i in range(len(dst)) if int(dst[i]) == slot]
        own = image.mass[members]
        mass.append(own.sum())
        x.append((image.x[members] * own[:, None, None]).sum(0) / own.sum())
        for deep, lists in zip(image.deep, parts, strict=True):
            lists.append([one for i in members for one in deep.parts[i]])
    left = tuple(replace(one, parts=own) for one, own in zip(image.deep, parts, strict=True))
    place = image.place[keep]
    return replace(image, x=torch.stack(x), mass=torch.stack(mass), place=place, deep=left)
