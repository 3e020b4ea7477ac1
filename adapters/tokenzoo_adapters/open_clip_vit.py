"""open_clip's vision towers: its own VisionTransformer (`model.visual`)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, cast

from torch import Tensor

from tokenzoo import hookimpl
from tokenzoo.adapter import Adapter, BlockPath, computed
from tokenzoo.errors import UnsupportedModelError
from tokenzoo.hooks import Undo, reduced_tokens, undo_all
from tokenzoo_adapters.common.embedded import note_map
from tokenzoo_adapters.common.feature_maps import forward_intermediates
from tokenzoo_adapters.common.own_code import own_code
from tokenzoo_adapters.common.patching import put, remove
from tokenzoo_adapters.common.pooling import mean, state_of
from tokenzoo_adapters.common.single_size import SingleSizeViT
from tokenzoo_adapters.common.sizes import mlp_width


class OpenClipViT(SingleSizeViT):
    """A `VisionTransformer` of open_clip: `model.visual`."""

    @computed
    def width(self) -> int:
        """Channels of a token."""
        return int(self.model.conv1.out_channels)

    @computed
    def mlp_dim(self) -> int:
        """Width of the MLP."""
        return mlp_width(self.model.transformer.resblocks[0].mlp, self.width)

    def blocks(self) -> tuple[BlockPath, ...]:
        """The residual blocks."""
        return tuple(
            BlockPath(f"transformer.resblocks.{i}", "attn", "ln_2", "ls_2")
            for i in range(len(self.model.transformer.resblocks))
        )

    def passthrough_modules(self) -> tuple[str, ...]:
        """The final norm, where it comes before the pooling."""
        return () if self.model.final_ln_after_pool else ("ln_post",)

    def size(self) -> tuple[int, int]:
        """The grid of the configured image size."""
        rows, columns = self.model.grid_size
        return int(rows), int(columns)

    READERS: ClassVar[tuple[str, ...]] = ("forward", "_pool", "_global_pool")
    """Methods that read tokens after the blocks."""

    @computed
    def all_tokens(self) -> str:
        """Whose own methods may take a mean of tokens."""
        own = own_code(self.model, "open_clip", self.READERS)
        return own or own_code(self.model.transformer, "open_clip", ["forward"])

    def entering(self, tokens: int) -> int:
        """Patches that the convolution made, and that patch dropout left in training."""
        return self.embedded.entering(tokens, self.tokens(), self.model.patch_dropout)

    def install(self, proportional: bool) -> Callable[[], None]:
        """Make a mean of tokens count masses, feature maps refuse fewer tokens, and note the patches."""
        del proportional
        own = {
            "_global_pool": partial(_global_pool, self.model),
            "forward_intermediates": partial(forward_intermediates, self.model, self.width),
        }
        own = {name: method for name, method in own.items() if hasattr(self.model, name)}
        handle = self.model.conv1.register_forward_hook(partial(note_map, self.embedded))
        put(self.model, own)
        undo: list[Undo] = [partial(remove, self.model, tuple(own)), handle.remove]
        return partial(undo_all, undo)


def _global_pool(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The tower's pooling, with a mean by mass: `(pooled [b, c], tokens [b, n, c])`."""
    state = state_of(x)
    if model.pool_type != "avg" or state.mass is None:
        return cast("Any", type(model))._global_pool(model, x)
    return mean(reduced_tokens(x, state), state.mass, 1), x[:, 1:]


@hookimpl
def tokenzoo_adapter(model: Any) -> Adapter | None:
    """The adapter of a vision tower of open_clip; raises for its other models, with what to attach to."""
    module = sys.modules.get("open_clip.transformer")
    if module is None or not isinstance(model, module.VisionTransformer):
        if not type(model).__module__.startswith("open_clip."):
            return None
        visual, trunk = getattr(model, "visual", None), getattr(model, "trunk", None)
        instead = "zoo.reduce(features), after the tower"
        if visual is not None:
            instead = "its vision tower: attach(model.visual)"
        elif trunk is not None:
            instead = (
                "the timm model inside: attach(model.trunk), in a whole CLIP model.visual.trunk"
            )
        raise UnsupportedModelError(
            f"open_clip's {type(model).__name__}: it is not a VisionTransformer of open_clip. What works: "
            f"{instead}"
        )
    kinds = {type(block).__name__ for block in model.transformer.resblocks}
    reasons = {
        f"has blocks {', '.join(sorted(kinds))}, not ResidualAttentionBlock": kinds
        != {"ResidualAttentionBlock"},
        "pools by an attention with learned queries": model.attn_pool is not None,
        "puts the batch second": not model.transformer.batch_first,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UnsupportedModelError(
                f"open_clip's {type(model).__name__} {reason}, which is not supported. What works on it: "
                "zoo.reduce(features), after the tower"
            )
    return OpenClipViT(model)
