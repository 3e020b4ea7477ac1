"""open_clip's vision towers: its own VisionTransformer (`model.visual`)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from torch import Tensor

from tokenzoo import hookimpl
from tokenzoo.errors import AttachError, UnsupportedModelError
from tokenzoo.interfaces import Adapter, BlockPath
from tokenzoo.runtime import passes
from tokenzoo.runtime.splice import LOST
from tokenzoo_adapters.sizes import mlp_width
from tokenzoo_adapters.timm_pool import put, remove


@dataclass(frozen=True, eq=False)
class OpenClipViT(Adapter):
    """A `VisionTransformer` of open_clip.

    Args:
        model: the tower, `model.visual`.
    """

    model: Any

    stages = frozenset({"block", "features"})
    prefix = 1
    provides = frozenset(
        {"x", "mass", "keys", "queries", "values", "received_attention", "attention"}
        | {"cls_attention", "grid"}
    )

    @property
    def width(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Channels of a token."""
        return int(self.model.conv1.out_channels)

    @property
    def hidden(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Width of the MLP."""
        return mlp_width(self.model.transformer.resblocks[0].mlp, self.width)

    def blocks(self) -> tuple[BlockPath, ...]:
        """The residual blocks."""
        return tuple(
            BlockPath(f"transformer.resblocks.{i}", "attn", "ln_2", "ls_2")
            for i in range(len(self.model.transformer.resblocks))
        )

    def followers(self) -> tuple[str, ...]:
        """The final norm, where it comes before the pooling."""
        return () if self.model.final_ln_after_pool else ("ln_post",)

    def tokens(self) -> int:
        """Patch tokens of the one image size that it takes."""
        rows, columns = self.model.grid_size
        return int(rows) * int(columns)

    def grid(self, tokens: int) -> tuple[int, int] | None:
        """The grid of its image size."""
        rows, columns = self.model.grid_size
        return (int(rows), int(columns)) if tokens == self.tokens() else None

    def install(self, proportional: bool) -> Callable[[], None]:
        """Make a mean over tokens count masses."""
        del proportional
        put(self.model, {"_global_pool": partial(_global_pool, self.model)})
        return partial(remove, self.model, ("_global_pool",))


def _global_pool(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The tower's pooling, with a mean by mass: `(pooled [b, c], tokens [b, n, c])`."""
    state = passes.of(x)
    if state is None:
        raise AttachError(LOST.format(where="the pooling"))
    if model.pool_type != "avg" or state.mass is None:
        return cast("Any", type(model))._global_pool(model, x)
    mass, patches = state.mass[:, 1:].to(x.dtype), passes.few(x, state)[:, 1:]
    return (patches * mass[..., None]).sum(1) / mass.sum(1, keepdim=True), x[:, 1:]


@hookimpl
def tokenzoo_adapter(model: Any) -> Adapter | None:
    """Know open_clip's vision towers; say of its other models what to attach to."""
    family = type(model).__module__
    if not family.startswith("open_clip."):
        return None
    module = sys.modules.get("open_clip.transformer")
    if module is None or not isinstance(model, module.VisionTransformer):
        visual, trunk = getattr(model, "visual", None), getattr(model, "trunk", None)
        instead = "zoo.reduce(features), behind the tower"
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
        "pools by an attention with queries of its own": model.attn_pool is not None,
        "puts the batch second": not model.transformer.batch_first,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UnsupportedModelError(
                f"open_clip's {type(model).__name__} {reason}, which is not followed. What works on it: "
                "zoo.reduce(features), behind the tower"
            )
    return OpenClipViT(model)
