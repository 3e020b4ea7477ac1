"""torchvision's VisionTransformer: ViT-B, ViT-L and ViT-H, read off its CLS token."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from tokenzoo import hookimpl
from tokenzoo.errors import UnsupportedModelError
from tokenzoo.interfaces import Adapter, BlockPath
from tokenzoo_adapters.sizes import mlp_width


@dataclass(frozen=True, eq=False)
class TorchvisionViT(Adapter):
    """A `torchvision.models.VisionTransformer`.

    Args:
        model: the transformer.
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
        return int(self.model.hidden_dim)

    @property
    def hidden(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Width of the MLP."""
        return mlp_width(next(iter(self.model.encoder.layers)).mlp, self.width)

    def blocks(self) -> tuple[BlockPath, ...]:
        """The encoder's layers."""
        return tuple(
            BlockPath(f"encoder.layers.{name}", "self_attention", "ln_2", "mlp")
            for name, _ in self.model.encoder.layers.named_children()
        )

    def followers(self) -> tuple[str, ...]:
        """The final norm."""
        return ("encoder.ln",)

    def tokens(self) -> int:
        """Patch tokens of the one image size that it takes."""
        return self._side() ** 2

    def grid(self, tokens: int) -> tuple[int, int] | None:
        """The square grid of its image size."""
        side = self._side()
        return (side, side) if tokens == side * side else None

    def _side(self) -> int:
        return int(self.model.image_size) // int(self.model.patch_size)


@hookimpl
def tokenzoo_adapter(model: Any) -> Adapter | None:
    """Know torchvision's vision transformers; refuse its other models by name."""
    module = sys.modules.get("torchvision.models.vision_transformer")
    if module is not None and isinstance(model, module.VisionTransformer):
        return TorchvisionViT(model)
    if not type(model).__module__.startswith("torchvision.models."):
        return None
    raise UnsupportedModelError(
        f"torchvision's {type(model).__name__}: it is no plain vision transformer (windows, a pyramid or "
        "convolutions need the whole grid). Followed is torchvision's VisionTransformer. What works on it: "
        "zoo.reduce(features), behind the tower"
    )
