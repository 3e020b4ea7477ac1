"""torchvision's VisionTransformer: ViT-B, ViT-L and ViT-H, which read their CLS token alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from tokenzoo import hookimpl
from tokenzoo.adapter import Adapter, BlockPath, computed
from tokenzoo.errors import UnsupportedModelError
from tokenzoo_adapters.common.embedded import note_map
from tokenzoo_adapters.common.own_code import own_code
from tokenzoo_adapters.common.single_size import SingleSizeViT
from tokenzoo_adapters.common.sizes import mlp_width


class TorchvisionViT(SingleSizeViT):
    """A `torchvision.models.VisionTransformer`."""

    @computed
    def width(self) -> int:
        """Channels of a token."""
        return int(self.model.hidden_dim)

    @computed
    def mlp_dim(self) -> int:
        """Width of the MLP."""
        return mlp_width(next(iter(self.model.encoder.layers)).mlp, self.width)

    def blocks(self) -> tuple[BlockPath, ...]:
        """The encoder's layers."""
        return tuple(
            BlockPath(f"encoder.layers.{name}", "self_attention", "ln_2", "mlp")
            for name, _ in self.model.encoder.layers.named_children()
        )

    def passthrough_modules(self) -> tuple[str, ...]:
        """The final norm."""
        return ("encoder.ln",)

    def size(self) -> tuple[int, int]:
        """The square grid of the configured image size."""
        side = int(self.model.image_size) // int(self.model.patch_size)
        return side, side

    @computed
    def all_tokens(self) -> str:
        """Whose own methods may take a mean of tokens."""
        own = (
            own_code(part, "torchvision", ["forward"]) for part in (self.model, self.model.encoder)
        )
        return next(filter(None, own), "")

    def entering(self, tokens: int) -> int:
        """Patches that the convolution made."""
        return self.embedded.entering(tokens, self.tokens())

    def install(self, proportional: bool) -> Callable[[], None]:
        """Note the patches of a pass; no pooling counts masses, for CLS alone is read."""
        del proportional
        return self.model.conv_proj.register_forward_hook(partial(note_map, self.embedded)).remove


@hookimpl
def tokenzoo_adapter(model: Any) -> Adapter | None:
    """The adapter of a vision transformer of torchvision; raises for its other models."""
    module = sys.modules.get("torchvision.models.vision_transformer")
    if module is not None and isinstance(model, module.VisionTransformer):
        return TorchvisionViT(model)
    if not type(model).__module__.startswith("torchvision.models."):
        return None
    raise UnsupportedModelError(
        f"torchvision's {type(model).__name__}: it is not a plain vision transformer (windows, a pyramid "
        "or convolutions need the whole grid). Supported is torchvision's VisionTransformer. What works on "
        "it: zoo.reduce(features), after the tower"
    )
