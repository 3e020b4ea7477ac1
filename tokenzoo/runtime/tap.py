"""Seeing queries and keys, and adding log mass, without leaving the fused attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tokenzoo.evidence import SeenAttention


class Tap(TorchFunctionMode):
    """Watch the calls of `scaled_dot_product_attention` while the mode is entered.

    Args:
        prefix: number of prefix tokens, for the evidence.
        key_bias: `[b, n]` to add to the logits of every query, or None.

    Attributes:
        seen: one entry per call.
    """

    def __init__(self, prefix: int = 0, key_bias: Tensor | None = None) -> None:
        super().__init__()
        self.prefix = prefix
        self.key_bias = key_bias
        self.seen: list[SeenAttention] = []

    def close(self) -> None:
        """Leave the mode, whatever happened inside."""
        super().__exit__(None, None, None)  # pyright: ignore[reportUnknownMemberType]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Let every call through; remember, and bias, those of the fused attention."""
        kwargs = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return self._attend(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **options: Any,
    ) -> Tensor:
        if self.key_bias is not None and key.shape[-2] != self.key_bias.shape[-1]:
            # Not the attention that this tap was opened for.
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **options
            )
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        self.seen.append(SeenAttention(query, key, factor, self.prefix, self.key_bias))
        if self.key_bias is not None:
            bias = self.key_bias[:, None, None].to(query.dtype)  # [b, 1, 1, n]
            attn_mask = bias if attn_mask is None else _add(attn_mask, bias)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **options
        )


def _add(mask: Tensor, bias: Tensor) -> Tensor:
    """Add a bias to a mask, which may be boolean (True: attend)."""
    if mask.dtype == torch.bool:
        return (bias + torch.zeros_like(mask, dtype=bias.dtype)).masked_fill(~mask, -torch.inf)
    return mask + bias
