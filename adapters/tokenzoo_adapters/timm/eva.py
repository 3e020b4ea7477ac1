"""timm's Eva family: EVA, EVA-02, DINOv3, Perception Encoder, and the ViTs with rotary positions.

Rotary positions rotate queries and keys inside every attention, so a token must keep its angles. The model
hands the angles of all tokens to each block; they are gathered for the places that the block's tokens stand
for. A merged token has the place of the token that it was merged into.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenzoo.adapter import computed
from tokenzoo.errors import BadArgumentError
from tokenzoo_adapters.timm.vit import TimmViT


@dataclass(frozen=True, eq=False)
class TimmEva(TimmViT):
    """An `Eva` of timm."""

    SECOND: ClassVar[dict[str, str]] = {"EvaBlock": "norm2", "EvaBlockPostNorm": "mlp"}
    ATTENTION: ClassVar[frozenset[str]] = frozenset({"EvaAttention", "AttentionRope"})

    @computed
    def positional(self) -> bool:
        """Whether its positions are rotary (EVA-1's are not)."""
        return self.model.rope is not None

    def with_prefix(self, prefix: int) -> TimmViT:
        """The same adapter with more prefix tokens, if its attention leaves them without positions."""
        own = int(self.model.num_prefix_tokens)
        found = {getattr(block.attn, "num_prefix_tokens", own) for block in self.model.blocks}
        known = found - {prefix}
        if self.positional and known:
            raise BadArgumentError(
                f"prefix={prefix!r}: the attention of this {type(self.model).__name__} rotates all tokens "
                f"but the first {known.pop()} (num_prefix_tokens of its blocks' attn); set that first"
            )
        return super().with_prefix(prefix)

    @computed
    def stages(self) -> frozenset[str]:
        """Images can be shrunk if positions are not rotary, or are made for any size."""
        fits = self.model.rope is None or self.model.dynamic_img_size
        return frozenset({"block", "features", "image"} if fits else {"block", "features"})

    def adapt_block_inputs(
        self, extra: tuple[Any, ...], options: dict[str, Any], places: Tensor | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Gather the angles of the tokens that are left; refuse masks."""
        rope: Tensor | None = options.get("rope")
        rest = {name: value for name, value in options.items() if name != "rope"}
        extra, rest = super().adapt_block_inputs(extra, rest, places)
        if rope is not None and places is not None:
            rope = _gathered(rope, places[:, self.prefix :] - self.prefix)
        return extra, {**rest, "rope": rope}

    def probe_inputs(self, index: int) -> tuple[int, dict[str, Any]]:
        """Eight tokens (or all, where there are fewer) at the first places."""
        rope = self._angles()
        if rope is None:
            return super().probe_inputs(index)
        rope = rope[index] if self.model.rope_mixed else rope  # [N, d] or [h, N, d]
        patches = min(8, rope.shape[-2])
        return patches, {"rope": rope[..., :patches, :]}

    def _angles(self) -> Tensor | None:
        rope = self.model.rope
        if rope is None:
            return None
        with torch.no_grad():
            return rope.get_embed(shape=self._size())


def _gathered(rope: Tensor, places: Tensor) -> Tensor:
    """The angles of patch tokens at `places [b, n]`: `[b, 1 or h, n, d]`.

    Args:
        rope: `[N, d]`; `[h, N, d]` if heads have their own angles; `[b, 1 or h, N, d]` if patches were
            dropped in training.
        places: of the tokens, prefix not counted.
    """
    if rope.ndim == 2:
        return rope[places][:, None]  # [b, 1, n, d]
    if rope.ndim == 3:
        return rope[:, places].transpose(0, 1)  # [b, h, n, d]
    index = places[:, None, :, None].expand(-1, rope.shape[1], -1, rope.shape[3])
    return rope.gather(2, index)
