"""timm's plain vision transformers: ViT, DeiT, DeiT-III, DINOv2, and its CLIP and SigLIP towers.

All of them are `timm.models.vision_transformer.VisionTransformer` with absolute positions: a token that
has met its position once can be moved and merged freely. timm is never imported: a model in hand means
that it is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenzoo import hookimpl
from tokenzoo.errors import AttachError, BudgetError, UnsupportedModelError
from tokenzoo.interfaces import Adapter, BlockPath
from tokenzoo.runtime import passes
from tokenzoo.runtime.splice import LOST
from tokenzoo.runtime.tap import Tap
from tokenzoo.tokens import full_precision

# The first module of the second residual branch, by class of block; the last is always the same.
SECOND = {"Block": "norm2", "ResPostBlock": "mlp"}

# Families of timm that are refused so far, and why.
REFUSED = {
    "eva": "its positions are rotary, inside the attention, and are not followed yet",
    "beit": "its attention adds a table of relative positions, which is not followed yet",
    "vision_transformer_relpos": "its attention adds relative positions, which are not followed yet",
    "vision_transformer_sam": "its attention works in windows of a fixed grid",
    "naflexvit": "it packs images of several sizes with masks of its own",
    "swin_transformer": "its windows need the whole grid; merging tokens would tear them",
    "cait": "its talking-heads attention never calls the fused attention",
    "xcit": "it attends over channels, not over tokens",
}


@dataclass(frozen=True, eq=False)
class TimmViT(Adapter):
    """A `VisionTransformer` of timm, and what of it must know about shorter sequences.

    Args:
        model: the transformer.
        fixed: whether it takes images of one size only; otherwise a number of tokens has no one grid.
    """

    model: Any
    fixed: bool = True

    stages = frozenset({"block", "image"})

    @property
    def prefix(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """CLS (or two, when distilled) and registers."""
        return int(self.model.num_prefix_tokens)

    @property
    def provides(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Everything about one attention; CLS attention where there is a CLS token."""
        found = {"x", "mass", "keys", "queries", "received_attention", "attention"}
        if self.model.cls_token is not None:
            found.add("cls_attention")
        if self.fixed and self.tokens() is not None:
            found.add("grid")
        return frozenset(found)

    @property
    def width(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Channels of a token."""
        return int(self.model.embed_dim)

    @property
    def hidden(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Width of the MLP, read off its first layer; four times the width if it has none."""
        first = getattr(self.model.blocks[0].mlp, "fc1", None)
        return int(first.out_features) if first is not None else 4 * self.width

    def blocks(self) -> tuple[BlockPath, ...]:
        """The blocks, all of one class."""
        return tuple(
            BlockPath(f"blocks.{i}", "attn", SECOND[type(block).__name__], "drop_path2")
            for i, block in enumerate(self.model.blocks)
        )

    def followers(self) -> tuple[str, ...]:
        """The final norm."""
        return ("norm",)

    def tokens(self) -> int | None:
        """Patch tokens of the configured image size."""
        grid = self._size()
        return None if grid is None else grid[0] * grid[1]

    def grid(self, tokens: int) -> tuple[int, int] | None:
        """The grid of the configured image size, if there are that many tokens and no other size."""
        grid = self._size()
        return grid if self.fixed and grid and grid[0] * grid[1] == tokens else None

    def _size(self) -> tuple[int, int] | None:
        grid = getattr(self.model.patch_embed, "grid_size", None)
        return None if grid is None else (int(grid[0]), int(grid[1]))

    def install(self, proportional: bool) -> Callable[[], None]:
        """Replace `pool` by one that counts masses, and refuse maps of fewer tokens than the grid has."""
        # Partials of functions of this module: copied and pickled with the model, they are the copy's.
        mine = {
            "pool": partial(_pool, self.model, proportional=proportional),
            "forward_intermediates": partial(_intermediates, self.model),
        }
        _set(self.model, mine)
        return partial(_unset, self.model, tuple(mine))

    def shrink(self, wanted: Callable[[int], int]) -> Callable[[], None]:
        """Resize the images to fewer patches; the positions are interpolated by timm itself."""
        model, embed = self.model, self.model.patch_embed
        grid = self._size()
        if grid is None:
            raise AttachError(
                "this model has no image size of its own, so that nothing can be shrunk to"
            )
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
        _set(embed, {"strict_img_size": False, "flatten": False, "output_fmt": nhwc})
        model.dynamic_img_size = True
        return partial(_unshrink, model, dynamic, before, handle)


def _set(module: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(module, name, value)


def _unset(module: Any, names: tuple[str, ...]) -> None:
    for name in names:
        delattr(module, name)


def _unshrink(model: Any, dynamic: bool, before: Mapping[str, Any], handle: Any) -> None:
    handle.remove()
    model.dynamic_img_size = dynamic
    _set(model.patch_embed, before)


@dataclass(frozen=True)
class _Shrink:
    """A pre-hook of the patch embedding: resize the image so that it has the wanted patches."""

    wanted: Callable[[int], int]

    def __call__(self, embed: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        image = args[0]  # [b, 3, height, width]
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


def _pool(
    model: Any, x: Tensor, pool_type: str | None = None, *, proportional: bool = False
) -> Tensor:
    """Timm's `pool`, with a mean by mass, and with log mass in an attention that pools."""
    state = passes.of(x)
    if state is None:
        raise AttachError(LOST.format(where="the pooling"))
    original = cast("Any", type(model)).pool  # the class's own, not the one put on the instance
    if state.mass is None:
        return original(model, x, pool_type)
    prefix = 0 if model.pool_include_prefix else int(model.num_prefix_tokens)
    if model.attn_pool is not None:
        if not proportional:
            return original(model, x, pool_type)
        tap = Tap(0, state.mass[:, prefix:].log())
        with tap:
            pooled = original(model, x, pool_type)
        if len(tap.seen) != 1:
            raise AttachError(
                f"{len(tap.seen)} fused attention calls in the pooling; one is expected"
            )
        return pooled
    kind = model.global_pool if pool_type is None else pool_type
    if kind not in ("avg", "avgmax"):
        return original(model, x, pool_type)
    mass = state.mass[:, prefix:].to(x.dtype)
    patches = x[:, prefix:]  # [b, n, c]
    mean = (patches * mass[..., None]).sum(1) / mass.sum(1, keepdim=True)  # [b, c]
    return mean if kind == "avg" else 0.5 * (mean + patches.amax(1))


def _intermediates(model: Any, x: Tensor, *args: Any, **options: Any) -> Any:
    """Timm's `forward_intermediates`, whose reshape to the grid may fit fewer tokens by accident."""
    result: Any = cast("Any", type(model)).forward_intermediates(model, x, *args, **options)
    found: Any = result["image_intermediates"] if hasattr(result, "keys") else result
    features: Any = found if hasattr(found, "append") else found[1]  # beside the last features
    for item in features:
        y: Any = item if torch.is_tensor(item) else item[0]  # (patches, prefix)
        if y.ndim == 4 and y.shape[1] != model.embed_dim:  # [b, c, rows, columns]
            raise AttachError(
                "forward_intermediates cannot make maps of the grid's size: fewer tokens are left; take "
                "output_fmt='NLC', blocks before the first reduction, or detach first"
            )
    return result


@hookimpl
def tokenzoo_adapter(model: Any) -> Adapter | None:
    """Know timm's vision transformers; refuse the rest of timm by name."""
    family = type(model).__module__
    if not family.startswith("timm.models."):
        module = sys.modules.get("timm.models.vision_transformer")
        if module is None or not isinstance(model, module.VisionTransformer):
            return None
    name = f"timm's {type(model).__name__}"
    module = sys.modules["timm.models.vision_transformer"]
    if not isinstance(model, module.VisionTransformer):
        reason = REFUSED.get(family.rpartition(".")[2], "it is not a plain vision transformer")
        raise UnsupportedModelError(
            f"{name}: {reason}. Supported are timm's VisionTransformer models: ViT, DeiT, DeiT-III, "
            "DINOv2, CLIP and SigLIP towers"
        )
    return TimmViT(_checked(model, name), fixed=not getattr(model, "dynamic_img_size", False))


def _checked(model: Any, name: str) -> Any:
    """Return the model if its blocks and its pooling can be followed; refuse it otherwise."""
    kinds = {type(block).__name__ for block in model.blocks}
    if len(kinds) != 1 or not kinds <= set(SECOND):
        raise UnsupportedModelError(
            f"{name} has blocks {', '.join(sorted(kinds))}; {' or '.join(SECOND)} can be reduced between "
            "attention and MLP, and the others have no such place"
        )
    attention = {type(block.attn).__name__ for block in model.blocks}
    if attention != {"Attention"}:
        raise UnsupportedModelError(
            f"{name} has attention {', '.join(sorted(attention))}; only timm's plain Attention is followed"
        )
    pool = getattr(model, "attn_pool", None)
    if pool is not None and (
        type(pool).__name__ != "AttentionPoolLatent" or getattr(pool, "pos_embed", None) is not None
    ):
        raise UnsupportedModelError(
            f"{name} pools with {type(pool).__name__} and positions of its own, made for all tokens"
        )
    if not all(torch.is_tensor(p) for p in (model.pos_embed,) if p is not None):
        raise UnsupportedModelError(f"{name} has positions that are no table")
    return model
