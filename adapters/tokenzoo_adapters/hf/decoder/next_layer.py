"""What a decoder layer would see of the tokens that are about to enter it, from its own projections.

One query, the last token of the prompt, and the keys of all tokens: no attention map, and nothing of the
layer runs but its first norm and two of its projections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenzoo.token_map import take
from tokenzoo_adapters.hf.gather import paid

Turns = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary positions of tokens, `[b, n, d]` each."""


@dataclass(frozen=True)
class Coming:
    """A layer, and what it would be handed if nothing were reduced before it.

    Attributes:
        layer: the decoder layer.
        turns: of the tokens that are about to enter.
        past: keys of earlier tokens in its cache, `[b, h or fewer, k, d]`; None: there are none.
        seen: `[b, k + n]` bool, which of all these are no padding.
    """

    layer: nn.Module
    turns: Turns
    past: Tensor | None
    seen: Tensor

    def last_attention(self, x: Tensor, rows: Tensor, end: Tensor, here: Tensor) -> Tensor:
        """Attention that some tokens would receive from the prompt's last one: `[g, h, n]`.

        Args:
            x: what is about to enter the layer, `[b, m, c]`.
            rows: `[g]`, which prompts.
            end: `[g, 1]`, where the last token of each is.
            here: `[g, n]`, where the tokens are that are asked for.
        """
        layer = cast("Any", self.layer)
        attention, weight = layer.self_attn, layer.input_layernorm.weight
        x = x[rows] if weight.is_meta else x[rows].to(weight.device)
        normed = layer.input_layernorm(x)
        cos, sin = (part[rows].to(x.device) for part in self.turns)
        end, here = end.to(x.device), here.to(x.device)
        query = _heads(attention.q_proj(take(normed, end)), attention, "q_norm")
        key = _heads(attention.k_proj(normed), attention, "k_norm")
        query, key = turned(query, take(cos, end), take(sin, end)), turned(key, cos, sin)
        past = 0
        if self.past is not None:
            key = torch.cat([self.past[rows].to(key), key], 2)
            past = self.past.shape[2]
        seen = self.seen[rows].to(x.device)
        row = paid(query, end + past, key, float(attention.scaling), here + past, seen)
        return row[:, :, 0]


def _heads(y: Tensor, attention: Any, norm: str) -> Tensor:
    """`[g, n, h * d]` as `[g, h, n, d]`, with the norm that some models have there."""
    y = y.view(*y.shape[:2], -1, int(attention.head_dim))
    if hasattr(attention, norm):
        y = getattr(attention, norm)(y)
    return y.transpose(1, 2)


def turned(y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads `[g, h, n, d]` turned to their positions."""
    left, right = y.chunk(2, -1)
    return y * cos[:, None] + torch.cat([-right, left], -1) * sin[:, None]


def rotation(turns: Turns, asking: Tensor, here: Tensor) -> Tensor:
    """The logits of pairs whose queries and keys are ones, turned to their positions: `[g, t, n]`.

    Args:
        turns: `[g, m, d]` each.
        asking: `[g, t]`, where the queries are.
        here: `[g, n]`, where the keys are.
    """
    cos, sin = (part.float() for part in turns)
    ones = turned(torch.ones_like(cos)[:, None], cos, sin)[:, 0]  # [g, m, d]
    return take(ones, asking) @ take(ones, here).mT / ones.shape[-1] ** 0.5
