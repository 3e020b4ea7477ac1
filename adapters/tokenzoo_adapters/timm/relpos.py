"""timm's ViTs with relative positions: BEiT, BEiTv2, `vit_relpos_*` and `vit_srelpos_*`.

Their attention adds a bias for each pair of places to its logits. The model makes it for all tokens of the
image; the tap gathers the rows and columns of the tokens that are left. So the `[b, h, n, n]` tensor of the
bare model stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenzoo.errors import BadArgumentError
from tokenzoo_adapters.timm.vit import TimmViT


@dataclass(frozen=True, eq=False)
class TimmRelPos(TimmViT):
    """A `Beit` or `VisionTransformerRelPos` of timm."""

    stages = frozenset({"block", "features"})
    positional = True

    SECOND: ClassVar[dict[str, str]] = {
        "Block": "norm2",
        "RelPosBlock": "norm2",
        "ResPostRelPosBlock": "mlp",
    }
    ATTENTION: ClassVar[frozenset[str]] = frozenset({"Attention", "RelPosAttention"})

    def with_prefix(self, prefix: int) -> TimmViT:
        """The same adapter: the bias exists for CLS and the patches only."""
        if prefix != self.prefix:
            raise BadArgumentError(
                f"prefix={prefix!r}: the attention of this {type(self.model).__name__} adds a bias for "
                f"each pair of places, made for {self.prefix} prefix tokens; leave it out"
            )
        return self

    SHARED: ClassVar[tuple[str, ...]] = ("shared_rel_pos_bias", "shared_rel_pos")
    """Keyword arguments of a block with the bias that all blocks share."""

    def adapt_block_inputs(
        self, extra: tuple[Any, ...], options: dict[str, Any], places: Tensor | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Pass the shared bias on unchanged: the tap gathers it with the block's own."""
        shared = {name: value for name, value in options.items() if name in self.SHARED}
        rest = {name: value for name, value in options.items() if name not in self.SHARED}
        extra, rest = super().adapt_block_inputs(extra, rest, places)
        return extra, {**rest, **shared}

    def probe_inputs(self, index: int) -> tuple[int, dict[str, Any]]:
        """All tokens of the image: the bias has no other size."""
        del index
        rows, columns = self._size() or (1, 1)
        shared: Any = getattr(self.model, "rel_pos_bias", None)
        if shared is not None:  # BEiT
            with torch.no_grad():
                return rows * columns, {"shared_rel_pos_bias": shared()}
        shared = getattr(self.model, "shared_rel_pos", None)
        if shared is None:
            return rows * columns, {}
        with torch.no_grad():
            return rows * columns, {"shared_rel_pos": shared.get_bias()}
