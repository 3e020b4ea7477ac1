"""The encoder of `ipcv.npz`: eight blocks on the tokens of some frames, of which each attends to itself.

It is a model with an adapter, so that whatever is attached to it runs as on any other. The adapter repeats
one habit of the authors' code: where removed tokens are missing, it counts a token that is the first of its
frame as the last of the frame before (`shifted`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokenzoo
from tokenzoo import Adapter
from tokenzoo.adapter import BlockPath

DEPTH, HEADS = 8, 4


class Attention(nn.Module):
    def __init__(self, qkv: Tensor, proj: Tensor) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Parameter(qkv), nn.Parameter(proj)

    def forward(self, x: Tensor, frames: Tensor) -> Tensor:
        """`x [b, n, c]`, and the frame `[N]` of each of the first tokens."""
        q, k, v = F.linear(x, self.qkv).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        own = frames[:, None] == frames  # [N, N]; who is attached picks the rows and columns
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=own)
        return F.linear(out.transpose(1, 2).flatten(2), self.proj)


class MLP(nn.Module):
    def __init__(self, fc1: Tensor, fc2: Tensor) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Parameter(fc1), nn.Parameter(fc2)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.gelu(F.linear(x, self.fc1)), self.fc2)


class Block(nn.Module):
    def __init__(self, weights: Mapping[str, Tensor], at: str) -> None:
        super().__init__()
        width = weights[f"{at}.proj"].shape[0]
        self.norm1 = nn.LayerNorm(width, 1e-6, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, 1e-6, elementwise_affine=False)
        self.attn = Attention(weights[f"{at}.qkv"], weights[f"{at}.proj"])
        self.mlp = MLP(weights[f"{at}.fc1"], weights[f"{at}.fc2"])

    def forward(self, x: Tensor, frames: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), frames)
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """Made of the weights of a golden case, for frames of so many tokens."""

    def __init__(self, weights: Mapping[str, Tensor], tokens: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(weights, f"w.{i}") for i in range(DEPTH))
        self.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        frames = torch.arange(x.shape[1]) // self.tokens
        for block in self.blocks:
            x = block(x, frames)
        return x


class EncoderAdapter(Adapter):
    stages = frozenset({"block"})
    provides = frozenset({"x", "mass"})
    positional = True
    dynamic_size = True

    def __init__(self, model: Encoder) -> None:
        fc1 = model.blocks[0].mlp.fc1
        self.mlp_dim, self.width = fc1.shape

    def blocks(self) -> tuple[BlockPath, ...]:
        return tuple(BlockPath(f"blocks.{i}", "attn", "norm2", "mlp") for i in range(DEPTH))

    def adapt_block_inputs(
        self, extra: tuple[Any, ...], options: dict[str, Any], places: Tensor | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if places is None or not extra:
            return extra, options
        return (shifted(extra[0]),), options

    def probe_inputs(self, index: int) -> tuple[int, dict[str, Any]]:
        return 8, {"frames": torch.zeros(8, dtype=torch.int64)}


def shifted(frames: Tensor) -> Tensor:
    """Frames `[N]` of which each has lost its first token to the one before."""
    return torch.cat([frames[:1], frames[:-1]])


@tokenzoo.hookimpl
def tokenzoo_adapter(model: Any) -> EncoderAdapter | None:
    return EncoderAdapter(model) if isinstance(model, Encoder) else None
