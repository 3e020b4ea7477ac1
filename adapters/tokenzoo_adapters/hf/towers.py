"""transformers' vision towers: CLIP, SigLIP, SigLIP 2, DINOv2 (with registers), DINOv3 and ViT.

They differ in names, in prefix tokens and in what pools; one table says which. SigLIP 2 here is the class
for images of any shape (NaFlex): an image must fill its patches, for a padding mask is made for all tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenzoo.adapter import Adapter, Attachment, BlockPath, computed
from tokenzoo.errors import AttachError
from tokenzoo.evidence import Layer
from tokenzoo.hooks.undo import undo_all
from tokenzoo_adapters.common.embedded import Embedded, declared
from tokenzoo_adapters.common.own_code import own_code
from tokenzoo_adapters.common.sizes import mlp_width
from tokenzoo_adapters.hf import attention as hf_attention
from tokenzoo_adapters.hf import classifiers as hf_around
from tokenzoo_adapters.hf import pool as hf_pool
from tokenzoo_adapters.hf.classifiers import Around
from tokenzoo_adapters.hf.names import ANGLES, MASK


@dataclass(frozen=True)
class Names:
    """What a class of towers calls its parts.

    Attributes:
        model: the class.
        layers: the list of its blocks.
        block: first norm, attention, second norm and last module of a block (see `BlockPath`).
        norm: the norm that all tokens go through behind the blocks; "": there is none.
        cls: whether there is a CLS token; registers are those of the configuration.
        rotary: whether positions act inside the attention.
        flat: whether it reads patches that are flat already, and how they lie.
        asks: whether it must be asked to interpolate its positions for another image size.
    """

    model: str
    layers: str
    block: tuple[str, str, str, str]
    norm: str = ""
    cls: bool = True
    rotary: bool = False
    flat: bool = False
    asks: bool = False


_CLIP = ("layer_norm1", "self_attn", "layer_norm2", "mlp")
# The last module of a branch is used by both branches: what its first call gives is left alone.
_DINO = ("norm1", "attention", "norm2", "drop_path")
_VIT = ("layernorm_before", "attention", "layernorm_after", "dropout")

NAMES: dict[str, Names] = {
    "clip": Names("CLIPVisionModel", "encoder.layers", _CLIP, asks=True),
    "siglip": Names(
        "SiglipVisionModel", "encoder.layers", _CLIP, "post_layernorm", cls=False, asks=True
    ),
    "siglip2": Names(
        "Siglip2VisionModel", "encoder.layers", _CLIP, "post_layernorm", cls=False, flat=True
    ),
    "dinov2": Names("Dinov2Model", "encoder.layer", _DINO, "layernorm"),
    "dinov2_with_registers": Names("Dinov2WithRegistersModel", "encoder.layer", _DINO, "layernorm"),
    "dinov3_vit": Names("DINOv3ViTModel", "model.layer", _DINO, "norm", rotary=True),
    "vit": Names("ViTModel", "layers", _VIT, "layernorm", asks=True),
}
"""The towers that are followed, by folder of transformers.models."""


@dataclass(frozen=True, eq=False)
class HFTower(Adapter):
    """A vision tower of transformers, alone or inside of a larger model.

    Args:
        model: the tower.
        names: of its parts.
        at: its own name in the larger model, with a dot behind it; "" where it stands alone.
        depth: blocks whose result is read; None: all.
        declared: prefix tokens that a user says there are; None: those of the class.
        outer: the model around the tower that is attached to, where it is one of `hf_around.AROUND`.
        around: what is known about that.
    """

    model: Any
    names: Names
    at: str = ""
    depth: int | None = None
    declared: int | None = None
    outer: Any = None
    around: Around | None = None
    embedded: Embedded = field(default_factory=Embedded, repr=False)

    watched = True
    dynamic_size = True  # CLIP, SigLIP and ViT by interpolate_pos_encoding=True in the call

    @computed
    def stages(self) -> frozenset[str]:
        """Images can be shrunk where they are images, and nobody needs the grid of the whole one."""
        fixed = self.names.flat or (self.around is not None and self.around.reads == "grid")
        return frozenset({"block", "features"} if fixed else {"block", "features", "image"})

    @computed
    def prefix(self) -> int:
        """CLS and registers, or what is declared."""
        return self._own_prefix() if self.declared is None else self.declared

    def _own_prefix(self) -> int:
        return int(self.names.cls) + int(getattr(self.model.config, "num_register_tokens", 0))

    def with_prefix(self, prefix: int) -> HFTower:
        """With prompts between CLS and the patches."""
        return replace(self, declared=declared(prefix, self._own_prefix()))

    @computed
    def all_tokens(self) -> str:
        """What of it, or of the model around it, may take a mean of its own."""
        own = own_code(self.model, "transformers", ["forward"])
        return own or ("" if self.outer is None else hf_around.all_tokens(self.outer, self.around))

    @computed
    def provides(self) -> frozenset[str]:
        """Everything about one attention; CLS attention where there is a CLS token."""
        found = {"x", "mass", "grid", "keys", "queries", "values"}
        found |= {"received_attention", "attention"}
        return frozenset(found | {"cls_attention"} if self.names.cls else found)

    @computed
    def width(self) -> int:
        """Channels of a token."""
        return int(self.model.config.hidden_size)

    @computed
    def hidden(self) -> int:
        """Width of the MLP."""
        return mlp_width(self._layers()[0].mlp, self.width)

    @computed
    def positional(self) -> bool:
        """Whether positions are rotary."""
        return self.names.rotary

    def blocks(self) -> tuple[BlockPath, ...]:
        """The blocks that are read."""
        first, attention, second, last = self.names.block
        return tuple(
            BlockPath(f"{self.at}{self.names.layers}.{i}", attention, second, last, first)
            for i in range(len(self._layers()) if self.depth is None else self.depth)
        )

    def _layers(self) -> Any:
        return self.model.get_submodule(self.names.layers)

    def layer(self, name: Layer) -> int | None:
        """Of all blocks of the tower, those that are not read counted: -2 is the last but one of these."""
        depth = len(self._layers())
        if not isinstance(name, int) or not -depth <= name < depth:
            return None
        return name % depth if name % depth < len(self.blocks()) else None

    def followers(self) -> tuple[str, ...]:
        """The final norm."""
        return (self.at + self.names.norm,) if self.names.norm else ()

    def follow(
        self, extra: tuple[Any, ...], options: dict[str, Any], places: Tensor | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The angles of the tokens that are left; masks are refused, what asks for outputs is passed on."""
        rest = {name: value for name, value in options.items() if name != ANGLES}
        # Flags, indices and lists of them only ask for outputs, and one number (the count of labels that a
        # Trainer passes) is no mask.
        given = (*extra, *rest.values())
        masks = tuple(value for value in given if isinstance(value, Tensor) and value.ndim)
        super().follow(masks, {"is_causal": options.get("is_causal")}, places)
        angles = options.get(ANGLES)
        if angles is None or places is None:
            return extra, options
        index = places[:, self.prefix :] - self.prefix
        return extra, {
            **options,
            ANGLES: tuple(part[index][:, None] for part in angles),  # [b, 1, n, d]
        }

    def trial(self, index: int) -> tuple[int, dict[str, Any]]:
        """Eight tokens without a mask, at any angles where positions are rotary."""
        hf_attention.check(self.model)  # before a block is run: some run in whole models only
        patches, options = 8, {MASK: None}
        if not self.names.rotary:
            return patches, options
        norm: Tensor = self._layers()[index].get_submodule(self.names.block[0]).weight
        device = torch.device("cpu") if norm.is_meta else norm.device
        d = self.width // int(self.model.config.num_attention_heads)
        angles = torch.arange(patches * d, dtype=torch.float32, device=device).view(patches, d)
        turns = (angles.cos().to(norm.dtype), angles.sin().to(norm.dtype))
        return patches, {**options, ANGLES: turns}

    def tokens(self) -> int:
        """Patch tokens of an image of the configured size."""
        if self.names.flat:
            return int(self.model.config.num_patches)
        rows, columns = self.size()
        return rows * columns

    def grid(self, tokens: int) -> tuple[int, int] | None:
        """The grid of the patches of this pass, if there are that many."""
        grid = self.embedded.size
        return grid if grid and grid[0] * grid[1] == tokens else None

    def size(self) -> tuple[int, int]:
        """Rows and columns of the patches of an image of the configured size."""
        return self._patches(*_pair(self.model.config.image_size))

    def _patches(self, height: int, width: int) -> tuple[int, int]:
        patch = _pair(self.model.config.patch_size)
        return height // patch[0], width // patch[1]

    def install(self, proportional: bool) -> Callable[[], None]:
        """Open the door of the attention, see the grid, and make the attention that pools count masses."""
        undo: list[Callable[[], object]] = [hf_attention.install(self.model)]
        embeddings = self.model.embeddings
        handles = [embeddings.register_forward_pre_hook(self._look, with_kwargs=True)]
        if self.names.flat:
            handles.append(self.model.register_forward_pre_hook(_unpadded, with_kwargs=True))
        if hasattr(self.model, "head") and len(self.blocks()) == len(self._layers()):
            handles.append(hf_pool.install(self.model.head.attention, proportional))
        undo += [handle.remove for handle in handles]
        return partial(undo_all, undo)

    def _look(self, embeddings: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Remember the grid of the patches that are embedded."""
        del embeddings
        if self.names.flat:
            shapes = args[1] if len(args) > 1 else options["spatial_shapes"]
            # What is compiled has no values to look at.
            rows: list[list[int]] = [] if torch.compiler.is_compiling() else shapes.tolist()
            grids = {(height, width) for height, width in rows}
            self.embedded.size = grids.pop() if len(grids) == 1 else None
            patches = args[0] if args else options["pixel_values"]  # [b, n, 3 * patch * patch]
            self.embedded.made = patches.shape[1]
        else:
            image = args[0] if args else options["pixel_values"]  # [b, 3, height, width]
            self.embedded.note(*self._patches(*image.shape[-2:]))

    def entering(self, tokens: int) -> int:
        """The patches of the images."""
        return self.embedded.entering(tokens, None)

    def connect(self, attached: Attachment) -> Callable[[], None]:
        """Make the classifiers around it count masses."""
        undo = hf_around.connect(self.model, self.outer, self._own_prefix(), attached)
        if self.outer is not None and self.names.flat:
            hook = self.outer.register_forward_pre_hook(_unpadded, with_kwargs=True)
            undo.append(hook.remove)
        return partial(undo_all, undo)

    def shrink(self, wanted: Callable[[int], int]) -> Callable[[], None]:
        """Resize the images to fewer patches; the positions are interpolated by transformers itself."""
        return hf_pool.shrink(self.model, self.size(), self._patches, wanted, asks=self.names.asks)


def find_tower(model: Any, at: str = "", depth: int | None = None) -> HFTower | None:
    """The adapter of a vision tower of transformers, if it is one that is followed.

    Args:
        model: the tower.
        at: its own name in a larger model, with a dot behind it.
        depth: blocks whose result is read; None: all.
    """
    for folder, names in NAMES.items():
        module = sys.modules.get(f"transformers.models.{folder}.modeling_{folder}")
        if module is not None and isinstance(model, getattr(module, names.model)):
            return HFTower(model, names, at, depth)
    return None


def _unpadded(
    model: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A pre-hook of SigLIP 2: a mask of padding that masks nothing is none.

    Raises:
        AttachError: an image does not fill its patches.
    """
    del model
    given = dict(
        zip(("pixel_values", "pixel_attention_mask", "spatial_shapes"), args, strict=False)
    )
    given |= options
    mask = given.get("pixel_attention_mask")
    if mask is not None and torch.compiler.is_compiling():
        torch._assert_async((mask == 1).all(), UNFILLED)  # pyright: ignore
    elif mask is not None and not bool((mask == 1).all()):
        raise AttachError(UNFILLED)
    return (), {**given, "pixel_attention_mask": None}


UNFILLED = (
    "an image does not fill its patches (pixel_attention_mask has zeros): a mask is made for all tokens, "
    "and fewer are there. Call the model with images of one shape at a time and the max_num_patches that "
    "they fill, or detach first"
)


def _pair(size: Any) -> tuple[int, int]:
    """Height and width of a size that may be one number."""
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
