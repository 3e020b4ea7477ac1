"""transformers' vision towers: CLIP, SigLIP, SigLIP 2, AIMv2, C-RADIO, DINOv2, DINOv3, ViT, SmolVLM's.

They differ in names, prefix tokens and pooling, as the table `TOWERS` says. SigLIP 2 here is the class for
images of any shape (NaFlex). Its images must fill their patches: a padding mask is made for all tokens, and
fewer are left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenzoo.adapter import Adapter, Attachment, BlockPath, computed
from tokenzoo.errors import AttachError
from tokenzoo.evidence import Layer
from tokenzoo.hooks import Undo, undo_all
from tokenzoo_adapters.common.embedded import Embedded, declared
from tokenzoo_adapters.common.evidence import FROM_ATTENTION
from tokenzoo_adapters.common.own_code import own_code
from tokenzoo_adapters.common.sizes import mlp_width
from tokenzoo_adapters.hf import attention as hf_attention
from tokenzoo_adapters.hf import pool as hf_pool
from tokenzoo_adapters.hf.classifiers import OuterModel, all_tokens, connect_outer
from tokenzoo_adapters.hf.names import ANGLES, MASK, loaded_class
from tokenzoo_adapters.hf.tower_names import TOWERS, TowerNames


@dataclass(frozen=True, eq=False)
class HFTower(Adapter):
    """A vision tower of transformers, alone or inside of a larger model.

    Args:
        model: the tower.
        names: of its parts.
        at: path of the tower in the larger model, with a dot at its end; "" if it stands alone.
        depth: blocks whose result is read; None: all.
        declared: prefix tokens that the user declares; None: those of the class.
        outer: the model with the tower in it that is attached to, if it is one of `OUTER_MODELS`.
        outer_class: its entry there.
    """

    model: Any
    names: TowerNames
    at: str = ""
    depth: int | None = None
    declared: int | None = None
    outer: Any = None
    outer_class: OuterModel | None = None
    embedded: Embedded = field(default_factory=Embedded, repr=False)

    uses_attention_interface = True

    @computed
    def stages(self) -> frozenset[str]:
        """Images can be shrunk unless a mask or shapes come with them, or a reader needs the full grid."""
        reads_grid = self.outer_class is not None and self.outer_class.reads == "grid"
        fixed = bool(self.names.padding) or reads_grid or not self.dynamic_size
        return frozenset({"block", "features"} if fixed else {"block", "features", "image"})

    @computed
    def dynamic_size(self) -> bool:
        """CLIP, SigLIP and ViT by interpolate_pos_encoding=True in the call, AIMv2 by its config."""
        return not self.names.resizes or bool(getattr(self.model.config, self.names.resizes))

    @computed
    def prefix(self) -> int:
        """CLS and registers, or the declared number."""
        return self._own_prefix() if self.declared is None else self.declared

    def _own_prefix(self) -> int:
        if self.names.prefix:
            return int(getattr(self.model.config, self.names.prefix))
        return int(self.names.cls) + int(getattr(self.model.config, "num_register_tokens", 0))

    def with_prefix(self, prefix: int) -> HFTower:
        """The adapter for a model with prompts between CLS and the patches."""
        return replace(self, declared=declared(prefix, self._own_prefix()))

    @computed
    def all_tokens(self) -> str:
        """Whose own forward, the tower's or the outer model's, may take a mean of tokens."""
        own = own_code(self.model, "transformers", ["forward"])
        return own or ("" if self.outer is None else all_tokens(self.outer, self.outer_class))

    @computed
    def provides(self) -> frozenset[str]:
        """All evidence of an attention, and CLS attention if there is a CLS token."""
        found = FROM_ATTENTION | {"grid"}
        return found | {"cls_attention"} if self.names.cls else found

    @computed
    def width(self) -> int:
        """Channels of a token."""
        return int(self.model.config.hidden_size)

    @computed
    def mlp_dim(self) -> int:
        """Width of the MLP."""
        return mlp_width(self._layers()[0].get_submodule(self.names.mlp), self.width)

    @computed
    def positional(self) -> bool:
        """Whether positions are rotary."""
        return self.names.rotary

    def blocks(self) -> tuple[BlockPath, ...]:
        """The blocks that are read."""
        first, attention, second, last = self.names.block
        names = (attention, second, last, first, self.names.scale)
        return tuple(
            BlockPath(f"{self.at}{self.names.layers}.{i}", *names)
            for i in range(len(self._layers()) if self.depth is None else self.depth)
        )

    def _layers(self) -> Any:
        return self.model.get_submodule(self.names.layers)

    def layer(self, name: Layer) -> int | None:
        """Index of a block; negative numbers count from the last block, read or not."""
        depth = len(self._layers())
        if not isinstance(name, int) or not -depth <= name < depth:
            return None
        return name % depth if name % depth < len(self.blocks()) else None

    def passthrough_modules(self) -> tuple[str, ...]:
        """The final norm."""
        return (self.at + self.names.norm,) if self.names.norm else ()

    def adapt_block_inputs(
        self, extra: tuple[Any, ...], options: dict[str, Any], places: Tensor | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Gather the angles of the tokens that are left; refuse masks, keep other options."""
        rest = {name: value for name, value in options.items() if name != ANGLES}
        # Flags and indices select outputs, and a single number (the count of labels that a Trainer passes)
        # is not a mask.
        given = (*extra, *rest.values())
        masks = tuple(value for value in given if isinstance(value, Tensor) and value.ndim)
        super().adapt_block_inputs(masks, {"is_causal": options.get("is_causal")}, places)
        angles = options.get(ANGLES)
        if angles is None or places is None:
            return extra, options
        index = places[:, self.prefix :] - self.prefix
        return extra, {
            **options,
            ANGLES: tuple(part[index][:, None] for part in angles),  # [b, 1, n, d]
        }

    def probe_inputs(self, index: int) -> tuple[int, dict[str, Any]]:
        """Eight tokens without a mask, at any angles where positions are rotary."""
        # Before a block runs: some attention runs in whole models only.
        hf_attention.check(self.model)
        patches, options = 8, {MASK: None} if self.names.masked else {}
        if not self.names.rotary:
            return patches, options
        norm: Tensor = self._layers()[index].get_submodule(self.names.block[0]).weight
        device = torch.device("cpu") if norm.is_meta else norm.device
        d = self.width // int(self.model.config.num_attention_heads)
        angles = torch.arange(patches * d, dtype=torch.float32, device=device).view(patches, d)
        cos_sin = (angles.cos().to(norm.dtype), angles.sin().to(norm.dtype))
        return patches, {**options, ANGLES: cos_sin}

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
        """Call taps in the attention, note the grid of a pass, and make attention pooling count masses."""
        undo: list[Undo] = [hf_attention.install(self.model)]
        embeddings = self.model.embeddings
        handles = [embeddings.register_forward_pre_hook(self._look, with_kwargs=True)]
        if self.names.padding:
            unpad = partial(_unpadded, self.names.padding)
            handles.append(self.model.register_forward_pre_hook(unpad, with_kwargs=True))
        if self.names.padding and not self.names.flat:
            # Without a mask it makes one for all patches.
            encoder = self.model.encoder
            handles.append(encoder.register_forward_pre_hook(_unmasked, with_kwargs=True))
        if hasattr(self.model, "head") and len(self.blocks()) == len(self._layers()):
            handles.append(hf_pool.install_head(self.model.head, proportional))
        undo += [handle.remove for handle in handles]
        return partial(undo_all, undo)

    def _look(self, embeddings: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """A pre-hook of the embeddings: note the grid of the patches."""
        del embeddings
        if self.names.flat:
            shapes = args[1] if len(args) > 1 else options["spatial_shapes"]
            # Compiled code has no values to read.
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
        """Make the classifier of the outer model count masses."""
        undo = connect_outer(self.model, self.outer, self._own_prefix(), attached)
        if self.outer_class is not None and self.names.flat:
            unpad = partial(_unpadded, self.names.padding)
            undo.append(self.outer.register_forward_pre_hook(unpad, with_kwargs=True).remove)
        return partial(undo_all, undo)

    def shrink(self, wanted: Callable[[int], int]) -> Callable[[], None]:
        """Resize the images to fewer patches; transformers interpolates the positions."""
        return hf_pool.shrink(self.model, self.size(), self._patches, wanted, asks=self.names.asks)


def find_tower(model: Any, at: str = "", depth: int | None = None) -> HFTower | None:
    """The adapter of a supported vision tower of transformers; None for any other model.

    Args:
        model: the tower.
        at: path of the tower in a larger model, with a dot at its end.
        depth: blocks whose result is read; None: all.
    """
    for folder, names in TOWERS.items():
        kind = loaded_class(folder, names.model)
        if kind is not None and isinstance(model, kind):
            return HFTower(model, names, at, depth)
    return None


def _unpadded(
    name: str, model: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A pre-hook of SigLIP 2 and SmolVLM: remove a padding mask, of that name, that masks nothing.

    Raises:
        AttachError: an image does not fill its patches.
    """
    del model
    given = dict(zip(("pixel_values", name, "spatial_shapes"), args, strict=False))
    given |= options
    mask, unfilled = given.get(name), UNFILLED.format(name)
    if mask is not None and torch.compiler.is_compiling():
        torch._assert_async((mask == 1).all(), unfilled)  # pyright: ignore
    elif mask is not None and not bool((mask == 1).all()):
        raise AttachError(unfilled)
    return (), {**given, name: None}


def _unmasked(
    encoder: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A pre-hook of an encoder whose mask masks nothing."""
    del encoder
    return args[:1], {**options, MASK: None}


UNFILLED = (
    "an image does not fill its patches ({} has zeros): a mask is made for all tokens, and fewer are "
    "there. Call the model with images of one shape at a time whose patches are all filled (SigLIP 2: the "
    "max_num_patches that they fill), or detach first"
)


def _pair(size: Any) -> tuple[int, int]:
    """Height and width of a size that may be one number."""
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
