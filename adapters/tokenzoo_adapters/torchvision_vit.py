"""torchvision's VisionTransformer: ViT-B, ViT-L and ViT-H, read off its CLS token."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from tokenzoo import hookimpl
from tokenzoo.adapter import Adapter, BlockPath, computed
from tokenzoo.errors import UnsupportedModelError
from tokenzoo_adapters.common.embedded import Embedded, declared, note_map
from tokenzoo_adapters.common.own_code import own_code
from tokenzoo_adapters.common.sizes import mlp_width


@dataclass(frozen=True, eq=False)
class TorchvisionViT(Adapter):
    """A `torchvision.models.VisionTransformer`.

    Args:
        model: the transformer.
        prefix: CLS, and what is declared.
    """

    model: Any
    prefix: int = 1
    embedded: Embedded = field(default_factory=Embedded, repr=False)

    stages = frozenset({"block", "features"})
    provides = frozenset(
        {"x", "mass", "keys", "queries", "values", "received_attention", "attention"}
        | {"cls_attention", "grid"}
    )

    @computed
    def width(self) -> int:
        """Channels of a token."""
        return int(self.model.hidden_dim)

    @computed
    def hidden(self) -> int:
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

    @computed
    def all_tokens(self) -> str:
        """What of it may take a mean of its own."""
        own = (
            own_code(part, "torchvision", ["forward"]) for part in (self.model, self.model.encoder)
        )
        return next(filter(None, own), "")

    def with_prefix(self, prefix: int) -> TorchvisionViT:
        """With prompts between CLS and the patches."""
        return replace(self, prefix=declared(prefix, 1))

    def entering(self, tokens: int) -> int:
        """What the convolution made."""
        return self.embedded.entering(tokens, self.tokens())

    def install(self, proportional: bool) -> Callable[[], None]:
        """See how many patches there are; CLS alone is read."""
        del proportional
        return self.model.conv_proj.register_forward_hook(partial(note_map, self.embedded)).remove

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
