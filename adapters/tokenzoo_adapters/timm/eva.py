"""timm's Eva family: EVA, EVA-02, DINOv3, Perception Encoder, and the ViTs with rotary positions.

Rotary positions turn queries and keys inside every attention, so that a token must keep its angles: the
model hands all of them to each block, and the block is given those of the places that its tokens stand
for. A merged token has the place of the one that it was merged into.
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
        """Whether it has rotary positions (EVA-1 has none)."""
        return self.model.rope is not None

    def with_prefix(self, prefix: int) -> TimmViT:
        """Where positions act inside the attention, it says itself which tokens have none."""
        own = int(self.model.num_prefix_tokens)
        found = {getattr(block.attn, "num_prefix_tokens", own) for block in self.model.blocks}
        known = found - {prefix}
        if self.positional and known:
            raise BadArgumentError(
                f"prefix={prefix!r}: the attention of this {type(self.model).__name__} turns all tokens "
                f"but the first {known.pop()} (num_prefix_tokens of its blocks' attn); set that first"
            )
        return super().with_prefix(prefix)

    @computed
    def stages(self) -> frozenset[str]:
        """Its images can be shrunk if its positions are not rotary, or are made for any size."""
        fits = self.model.rope is None or self.model.dynamic_img_size
        return frozenset({"block", "features", "image"} if fits else {"block", "features"})

    def follow(
        self, extra: tuple[Any, ...], options: dict[str, Any], places: Tensor | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The angles of the tokens that are left; masks are refused."""
        rope: Tensor | None = options.get("rope")
        rest = {name: value for name, value in options.items() if name != "rope"}
        extra, rest = super().follow(extra, rest, places)
        if rope is not None and places is not None:
            rope = _turned(rope, places[:, self.prefix :] - self.prefix)
        return extra, {**rest, "rope": rope}

    def trial(self, index: int) -> tuple[int, dict[str, Any]]:
        """Eight tokens (or all, where there are fewer) at the first places."""
        rope = self._angles()
        if rope is None:
            return super().trial(index)
        rope = rope[index] if self.model.rope_mixed else rope  # [N, d] or [h, N, d]
        patches = min(8, rope.shape[-2])
        return patches, {"rope": rope[..., :patches, :]}

    def _angles(self) -> Tensor | None:
        rope = self.model.rope
        if rope is None:
            return None
        with torch.no_grad():
            return rope.get_embed(shape=self._size())


def _turned(rope: Tensor, places: Tensor) -> Tensor:
    """The angles of patch tokens at `places [b, n]`, with a dimension for batch and heads each.

    `rope` is `[N, d]`, `[h, N, d]` where heads have their own, or has a batch already, `[b, 1 or h, N, d]`,
    where patches were dropped in training.
    """
    if rope.ndim == 2:
        return rope[places][:, None]  # [b, 1, n, d]
    if rope.ndim == 3:
        return rope[:, places].transpose(0, 1)  # [b, h, n, d]
    index = places[:, None, :, None].expand(-1, rope.shape[1], -1, rope.shape[3])
    return rope.gather(2, index)
