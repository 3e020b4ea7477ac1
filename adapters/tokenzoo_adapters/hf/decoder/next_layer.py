"""The attention that a decoder layer would give to the tokens that are about to enter it.

It is computed from the layer's own norm and projections: one query, the last token of the prompt, and the
keys of all tokens. There is no attention map, and nothing else of the layer runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenzoo.token_map import take
from tokenzoo_adapters.hf.gather import attention_to

CosSin = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary positions of tokens, `[b, n, d]` each."""


@dataclass(frozen=True)
class NextLayerProbe:
    """A layer, and what it would be given without the step before it.

    Attributes:
        layer: the decoder layer.
        angles: of the tokens that are about to enter.
        past: keys of earlier tokens in its cache, `[b, h or fewer, k, d]`; None: there are none.
        real: `[b, k + n]` bool, which of all these tokens are not padding.
    """

    layer: nn.Module
    angles: CosSin
    past: Tensor | None
    real: Tensor

    def last_attention(self, x: Tensor, rows: Tensor, last: Tensor, places: Tensor) -> Tensor:
        """Attention from the last token of each prompt to some tokens: `[g, h, n]`.

        Args:
            x: what is about to enter the layer, `[b, m, c]`.
            rows: `[g]`, which prompts.
            last: `[g, 1]`, position of the last token of each.
            places: `[g, n]`, positions of the tokens.
        """
        layer = cast("Any", self.layer)
        attention, weight = layer.self_attn, layer.input_layernorm.weight
        x = x[rows] if weight.is_meta else x[rows].to(weight.device)
        normed = layer.input_layernorm(x)
        cos, sin = (part[rows].to(x.device) for part in self.angles)
        last, places = last.to(x.device), places.to(x.device)
        query = _heads(attention.q_proj(take(normed, last)), attention, "q_norm")  # [g, h, 1, d]
        key = _heads(attention.k_proj(normed), attention, "k_norm")  # [g, h or fewer, m, d]
        query, key = rotated(query, take(cos, last), take(sin, last)), rotated(key, cos, sin)
        past = 0
        if self.past is not None:
            key = torch.cat([self.past[rows].to(key), key], 2)  # [g, h or fewer, k + m, d]
            past = self.past.shape[2]
        real = self.real[rows].to(x.device)
        scale = float(attention.scaling)
        return attention_to(query, last + past, key, scale, places + past, real)[:, :, 0]


def _heads(y: Tensor, attention: Any, norm: str) -> Tensor:
    """`[g, n, h * d]` as `[g, h, n, d]`, with the norm that some models have there."""
    y = y.view(*y.shape[:2], -1, int(attention.head_dim))
    if hasattr(attention, norm):
        y = getattr(attention, norm)(y)
    return y.transpose(1, 2)


def rotated(y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads `[g, h, n, d]` by the angles `[g, n, d]` of their positions."""
    left, right = y.chunk(2, -1)
    return y * cos[:, None] + torch.cat([-right, left], -1) * sin[:, None]


def rotation_logits(angles: CosSin, queries: Tensor, keys: Tensor) -> Tensor:
    """Logits of pairs whose queries and keys are ones, rotated by their positions: `[g, t, n]`.

    Args:
        angles: `[g, m, d]` each.
        queries: `[g, t]`, positions of the queries among the m tokens.
        keys: `[g, n]`, positions of the keys.
    """
    cos, sin = (part.float() for part in angles)
    ones = rotated(torch.ones_like(cos)[:, None], cos, sin)[:, 0]  # [g, m, d]
    return take(ones, queries) @ take(ones, keys).mT / ones.shape[-1] ** 0.5
