"""Seeing queries and keys, and adding log mass, without leaving the fused attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tokenzoo.errors import AttachError
from tokenzoo.evidence import SeenAttention
from tokenzoo.runtime.key_bias import fits, widened

WATCH = "_tokenzoo_watch"
"""Where an attention module that looks for its tap itself (`Adapter.watched`) finds the holder of it."""


class Tap(TorchFunctionMode):
    """Watch the calls of `scaled_dot_product_attention` while the mode is entered.

    Inside `nn.MultiheadAttention` that call is hidden: the function around it is handed to the mode, and
    while it runs the mode is off. So it is written out here, for the cases that vision towers use.

    Args:
        prefix: number of prefix tokens, for the evidence.
        key_bias: `[b, n]` to add to the logits of every query, or None.
        places: `[b, n]` int64, which of the first tokens each token stands for: rows and columns of a
            bias that the model made for all of them; None: all of them are there.

    Attributes:
        seen: one entry per call.
    """

    def __init__(
        self, prefix: int = 0, key_bias: Tensor | None = None, places: Tensor | None = None
    ) -> None:
        super().__init__()
        self.prefix = prefix
        self.key_bias = key_bias
        self.places = places
        self.seen: list[SeenAttention] = []

    def close(self) -> None:
        """Leave the mode, whatever happened inside."""
        super().__exit__(None, None, None)  # pyright: ignore[reportUnknownMemberType]

    def look(
        self,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scale: float | None,
        value: Tensor | None = None,
    ) -> Tensor | None:
        """Remember one attention.

        Args:
            query: `[b, h, n, d]`.
            key: `[b, h, n, d]`.
            mask: what the model adds itself, or a boolean mask (True: attend), broadcastable to
                `[b, h, n, n]`.
            scale: the factor on the inner products; None: `d ** -0.5`.
            value: `[b, h, n, d]`, for the parts that want to see it.

        Returns:
            What is to be added to the logits instead of the mask (or a boolean mask), if anything.
        """
        if mask is not None and self.places is not None:
            mask = _at(mask, self.places)
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        own = None if mask is None else _added(mask, query.dtype)
        self.seen.append(SeenAttention(query, key, factor, self.prefix, self.key_bias, own, value))
        if self.key_bias is None:
            return mask
        bias = self.key_bias[:, None, None].to(query.dtype)  # [b, 1, 1, n]
        return bias if own is None else own + bias

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Let every call through; remember, and bias, those of the fused attention."""
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._attend_heads(*args, **kwargs)
        return func(*args, **kwargs)

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
        attend: Callable[..., Tensor] = F.scaled_dot_product_attention
        if torch.compiler.is_compiling():
            # Behind a graph break this very mode is entered while the graph runs: it must not see it again.
            attend = torch.ops.aten.scaled_dot_product_attention
        known = self.places if self.key_bias is None else self.key_bias  # [b, n]
        if known is not None and key.shape[-2] != known.shape[-1]:
            # Not the attention that this tap was opened for.
            return attend(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **options
            )
        if self.key_bias is not None and attn_mask is None and fits(query):
            self.look(query, key, None, scale, value)
            factor = query.shape[-1] ** -0.5 if scale is None else scale
            wide = widened(query, key, value, self.key_bias, factor)
            out = attend(*wide, None, dropout_p, is_causal, scale=factor, **options)
            return out[..., : value.shape[-1]]
        attn_mask = self.look(query, key, attn_mask, scale, value)
        return attend(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **options)

    def _attend_heads(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        embed_dim: int,
        heads: int,
        in_weight: Tensor | None,
        in_bias: Tensor | None,
        bias_k: Tensor | None,
        bias_v: Tensor | None,
        add_zero_attn: bool,
        dropout_p: float,
        out_weight: Tensor,
        out_bias: Tensor | None,
        training: bool = True,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        use_separate_proj_weight: bool = False,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """`F.multi_head_attention_forward` on `[n, b, c]`, without its masks and extra tokens."""
        unusual = {
            "need_weights=True": need_weights,
            "key_padding_mask": key_padding_mask is not None,
            "attn_mask": attn_mask is not None,
            "add_bias_kv": bias_k is not None or bias_v is not None,
            "add_zero_attn": add_zero_attn,
            "kdim or vdim": use_separate_proj_weight or in_weight is None,
            "is_causal": options.get("is_causal", False),
            "inputs without a batch": query.ndim != 3,
        }
        found = [name for name, there in unusual.items() if there]
        if found or in_weight is None:
            raise AttachError(
                f"an nn.MultiheadAttention is called with {', '.join(found)}; it can be followed only "
                "without: detach first, or call the model so that it needs none"
            )

        def projected(x: Tensor, part: int) -> Tensor:  # [n, b, c] -> [b, h, n, d]
            rows = slice(part * embed_dim, (part + 1) * embed_dim)
            bias = None if in_bias is None else in_bias[rows]
            y = F.linear(x, in_weight[rows], bias)
            return y.view(*y.shape[:2], heads, embed_dim // heads).permute(1, 2, 0, 3)

        q, k, v = projected(query, 0), projected(key, 1), projected(value, 2)
        out = self._attend(q, k, v, None, dropout_p if training else 0.0)
        joined = out.permute(2, 0, 1, 3).flatten(2)  # [n, b, c]
        return F.linear(joined, out_weight, out_bias), None


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What a mask, which may be boolean (True: attend), adds to the logits: four dimensions."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)
    return mask.view(*[1] * (4 - mask.ndim), *mask.shape)


def _at(mask: Tensor, places: Tensor) -> Tensor:
    """Rows and columns `places [b, n]` of a mask that broadcasts to `[b, h, N, N]`."""
    mask = mask.view(*[1] * (4 - mask.ndim), *mask.shape)
    mask = mask.expand(places.shape[0], -1, -1, -1)
    h, rows, columns = mask.shape[1:]
    if rows > 1:
        mask = mask.gather(2, places[:, None, :, None].expand(-1, h, -1, columns))
    if columns > 1:
        mask = mask.gather(3, places[:, None, None, :].expand(-1, h, mask.shape[2], -1))
    return mask
