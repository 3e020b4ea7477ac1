"""timm's plain vision transformers: ViT, DeiT, DeiT-III, DINOv2, AIMv2, and its CLIP and SigLIP towers.

All of them are `timm.models.vision_transformer.VisionTransformer` with absolute positions, which are added
once, before the blocks: tokens can be moved and merged freely. The other adapters of timm derive from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from tokenzoo.adapter import Adapter, BlockPath, computed
from tokenzoo.errors import AttachError, UnsupportedModelError
from tokenzoo.hooks import Undo, refuse_symbols, undo_all
from tokenzoo_adapters.common.embedded import Embedded, declared
from tokenzoo_adapters.common.evidence import FROM_ATTENTION
from tokenzoo_adapters.common.own_code import own_code
from tokenzoo_adapters.common.sizes import mlp_width
from tokenzoo_adapters.timm import pool as timm_pool
from tokenzoo_adapters.timm import shrink as timm_shrink


@dataclass(frozen=True, eq=False)
class TimmViT(Adapter):
    """A `VisionTransformer` of timm.

    Args:
        model: the transformer.
        fixed: whether it takes images of one size only; otherwise each pass has its own grid.
        declared: prefix tokens that the user declares; None: those of the class.
    """

    model: Any
    fixed: bool = True
    declared: int | None = None
    embedded: Embedded = field(default_factory=Embedded, repr=False)

    stages = frozenset({"block", "features", "image"})

    SECOND: ClassVar[dict[str, str]] = {"Block": "norm2", "ResPostBlock": "mlp"}
    """The first module of the second residual branch, by class of block; the last is `drop_path2`."""

    ATTENTION: ClassVar[frozenset[str]] = frozenset({"Attention"})
    """The supported classes of attention."""

    @computed
    def prefix(self) -> int:
        """CLS (or two tokens, when distilled) and registers, or the declared number."""
        return int(self.model.num_prefix_tokens) if self.declared is None else self.declared

    def with_prefix(self, prefix: int) -> TimmViT:
        """The adapter for a model with prompts between CLS and the patches."""
        return replace(self, declared=declared(prefix, int(self.model.num_prefix_tokens)))

    READERS: ClassVar[tuple[str, ...]] = ("forward", "forward_features", "forward_head", "pool")
    """Methods that read tokens after the blocks."""

    @computed
    def all_tokens(self) -> str:
        """Which head or method of the model may take a mean of its own."""
        head = getattr(self.model, "head", None)
        unpooled = not (self.model.global_pool or getattr(self.model, "attn_pool", None))
        if unpooled and head is not None and not type(head).__module__.startswith("torch.nn."):
            return (
                f"with global_pool={self.model.global_pool!r} its head, a {type(head).__qualname__}, pools "
                "them, and a mean would count a merged token once, however many it stands for"
            )
        return own_code(self.model, "timm", self.READERS)

    @computed
    def provides(self) -> frozenset[str]:
        """All evidence of an attention, and CLS attention and grid if there are any."""
        found = FROM_ATTENTION
        if self.model.cls_token is not None:
            found |= {"cls_attention"}
        return found if self.tokens() is None else found | {"grid"}

    @computed
    def width(self) -> int:
        """Channels of a token."""
        return int(self.model.embed_dim)

    @computed
    def mlp_dim(self) -> int:
        """Width of the MLP."""
        return mlp_width(self.model.blocks[0].mlp, self.width)

    @computed
    def dynamic_size(self) -> bool:
        """Whether the model was made with dynamic_img_size=True."""
        return not self.fixed

    def blocks(self) -> tuple[BlockPath, ...]:
        """All blocks; they are of one class."""
        return tuple(
            BlockPath(f"blocks.{i}", "attn", self.SECOND[type(block).__name__], "drop_path2")
            for i, block in enumerate(self.model.blocks)
        )

    def passthrough_modules(self) -> tuple[str, ...]:
        """The final norm."""
        return ("norm",)

    def tokens(self) -> int | None:
        """Patch tokens of the configured image size."""
        grid = self._size()
        return None if grid is None else grid[0] * grid[1]

    def grid(self, tokens: int) -> tuple[int, int] | None:
        """The grid of the image size, if there are that many tokens."""
        grid = self._size() if self.fixed else self.embedded.size
        return grid if grid and grid[0] * grid[1] == tokens else None

    def _size(self) -> tuple[int, int] | None:
        grid = getattr(self.model.patch_embed, "grid_size", None)
        return None if grid is None else (int(grid[0]), int(grid[1]))

    def install(self, proportional: bool) -> Callable[[], None]:
        """Make the pooling count masses, feature maps refuse fewer tokens, and note the grid of a pass."""
        undo: list[Undo] = [
            self.model.patch_embed.register_forward_hook(self._look).remove,
            timm_pool.install(self.model, proportional, self.prefix),
        ]
        return partial(undo_all, undo)

    def _look(self, embed: Any, args: tuple[Any, ...], output: Tensor) -> None:
        del embed, args
        refuse_symbols(output)
        if output.ndim == 4:  # [b, rows, columns, c], where images have any size
            self.embedded.note(output.shape[1], output.shape[2])
        else:
            self.embedded.made = output.shape[1]

    def entering(self, tokens: int) -> int:
        """Patches that the patch embedding made, and that patch dropout left in training."""
        own_size = self.tokens() if self.fixed else None
        return self.embedded.entering(tokens, own_size, getattr(self.model, "patch_drop", None))

    def shrink(self, wanted: Callable[[int], int]) -> Callable[[], None]:
        """Resize the images to fewer patches; timm interpolates the positions."""
        grid = self._size()
        if grid is None:
            raise AttachError(
                "this model has no configured image size, which a step at stage 'image' needs"
            )
        return timm_shrink.shrink(self.model, grid, wanted, dynamic_size=self.dynamic_size)

    def check(self, name: str) -> None:
        """Raise if the blocks or the pooling of this model are not supported.

        Args:
            name: of the model, for the message.

        Raises:
            UnsupportedModelError: names the part that is not supported, and why.
        """
        kinds = {type(block).__name__ for block in self.model.blocks}
        if len(kinds) != 1 or not kinds <= set(self.SECOND):
            raise UnsupportedModelError(
                f"{name} has blocks {', '.join(sorted(kinds))}; {' or '.join(self.SECOND)} can be reduced "
                "between attention and MLP, and the others (attention and MLP in parallel, or two of each) "
                f"have no such place. {INSTEAD}"
            )
        attention = {type(block.attn).__name__ for block in self.model.blocks}
        if not attention <= self.ATTENTION:
            known = " or ".join(sorted(self.ATTENTION))
            raise UnsupportedModelError(
                f"{name} has attention {', '.join(sorted(attention))}; {known} is supported, which calls "
                f"the fused attention once. {INSTEAD}"
            )
        pool = getattr(self.model, "attn_pool", None)
        if pool is not None and (
            type(pool).__name__ != "AttentionPoolLatent"
            or getattr(pool, "pos_embed", None) is not None
        ):
            raise UnsupportedModelError(
                f"{name} pools with {type(pool).__name__} and positions of its own, made for all tokens. "
                f"{INSTEAD}"
            )


INSTEAD = "What works on it: zoo.reduce(features), after the tower"
