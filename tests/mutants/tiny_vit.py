"""A tiny vision transformer, in torch alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE, WIDTH, HEADS = 4, 8, 2


class Attention(nn.Module):
    """Self-attention by one fused call."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = rows.unbind(0)  # [b, h, n, d]
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention, x + MLP, with norms before."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Pool(nn.Module):
    """Concatenate the CLS token and the mean of the patches."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 0], x[:, 1:].mean(1)], -1)


class TinyViT(nn.Module):
    """Four by four patches, a CLS token, four blocks.

    Args:
        adapter: the class that is to follow its tokens.
    """

    def __init__(self, adapter: type[Any]) -> None:
        super().__init__()
        self.adapter = adapter
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Linear(3, WIDTH)
        self.cls = nn.Parameter(torch.empty(1, 1, WIDTH))
        self.places = nn.Parameter(torch.empty(1, SIDE * SIDE, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.norm, self.pool, self.head = nn.LayerNorm(WIDTH), Pool(), nn.Linear(2 * WIDTH, 5)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                values = torch.randn(parameter.shape, generator=generator)
                weight = name.endswith("weight") and parameter.ndim > 1
                parameter.copy_(values * (0.4 if weight else 0.2))
                if "norm" in name and name.endswith("weight"):
                    parameter.add_(1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image.flatten(2).mT) + self.places
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
        for block in self.run():
            x = block(x)
        return self.head(self.pool(self.norm(x)))

    def run(self) -> list[nn.Module]:
        return list(self.blocks)


class Loops(TinyViT):
    """Runs its last block twice."""

    def run(self) -> list[nn.Module]:
        return [*self.blocks, self.blocks[-1]]
