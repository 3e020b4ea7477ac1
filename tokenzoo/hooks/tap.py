"""Seeing queries and keys, and adding log mass, without leaving the fused attention.

A tap is entered by a hook before an attention and left by a hook after it. An interrupt (Ctrl-C) skips the
second hook, and the tap stays on the thread's stack of modes. So a tap knows the frame that called the
attention: it acts only while that frame runs, and lets every call through afterwards. `sweep` takes such
taps off the stack.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tokenzoo.attention import SeenAttention
from tokenzoo.errors import AttachError
from tokenzoo.hooks.key_bias import added, fits, gathered, widened
from tokenzoo.hooks.mode_stack import entered, no_mode, runs, take_out
from tokenzoo.kernels import attend_and_receive
from tokenzoo.kernels.choice import transformed

TAP_ATTR = "_tokenzoo_watch"
"""Where an attention module that looks for its tap itself finds the holder of it.

See `Adapter.uses_attention_interface`.
"""


class Tap(TorchFunctionMode):
    """Watch the calls of `scaled_dot_product_attention` while the mode is entered.

    Inside `nn.MultiheadAttention` that call is hidden: the function around it is handed to the mode, and
    while it runs the mode is off. So it is written out here, for the cases that vision towers use.

    Args:
        prefix: number of prefix tokens, for the evidence.
        key_bias: `[b, n]` to add to the logits of every query, or None.
        places: `[b, n]` int64, which of the first tokens each token stands for: rows and columns of a
            bias that the model made for all of them; None: all of them are there.
        segmented: whether each call is about the next segment of a packed sequence, `[1, h, s, d]`, whose
            key bias is `[1, r]`.
        receives: whether the attention that each token receives will be read, and is to be computed
            together with the output where that is faster.

    Attributes:
        seen: one entry per call, with the key bias of that call.
        caller: the frame that calls the attention; None: the tap acts as long as it is entered.
        traced: whether it was entered by code that is compiled, where there are no frames.
    """

    def __init__(
        self,
        prefix: int = 0,
        key_bias: Tensor | None = None,
        places: Tensor | None = None,
        segmented: bool = False,
        receives: bool = False,
    ) -> None:
        super().__init__()
        self.prefix = prefix
        self.key_bias = key_bias
        self.places = places
        self.segmented = segmented
        self.receives = receives
        self.begin = 0  # of the next segment
        self.seen: list[SeenAttention] = []
        self.caller: FrameType | None = None
        # Text, which torch's compiler takes as a constant; it takes no mode (torch 2.11) and no frame.
        self.caller_id = ""
        self.traced = False

    def open(self) -> None:
        """Enter the mode for as long as the caller of the calling function runs."""
        if torch.compiler.is_dynamo_compiling():
            self.traced = True
        else:
            self.caller = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
            self.caller_id = str(id(self.caller))
        self.__enter__()

    def close(self) -> None:
        """Leave the mode, wherever it is on the stack; the other modes stay. Idempotent."""
        if torch.compiler.is_dynamo_compiling():
            super().__exit__(None, None, None)  # pyright: ignore[reportUnknownMemberType]
            return
        take_out(self)
        self.caller = None

    def orphaned(self) -> bool:
        """Whether the call that this tap was opened for has ended, and the tap was not closed."""
        if self.caller is None:
            return False
        if torch.compiler.is_dynamo_compiling():
            return not runs(self.caller_id)
        if runs(self.caller_id):
            return False
        # What it holds is not to live as long as it stays on the stack.
        self.seen, self.key_bias, self.places = [], None, None
        return True

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
            mask = gathered(mask, self.places)
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        own = None if mask is None else added(mask, query.dtype)
        bias = self.key_bias
        if self.segmented:
            begin, self.begin = self.begin, self.begin + key.shape[2]
            bias = None if bias is None else bias[:, begin : self.begin]
        self.seen.append(SeenAttention(query, key, factor, self.prefix, bias, own, value))
        if bias is None:
            return mask
        bias = bias[:, None, None].to(query.dtype)  # [b, 1, 1, n]
        return bias if own is None else own + bias

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor | None:
        """Compute an attention without a mask together with what is read of it, and remember both.

        Args:
            query: `[b, h, n, d]`.
            key: `[b, h, n, d]`.
            value: `[b, h, n, d]`.
            scale: the factor on the inner products; None: `d ** -0.5`.

        Returns:
            `[b, h, n, d]`, laid out as `[b, n, h, d]`; None: nothing was computed, `look` is to be called.
        """
        if not self.receives or torch.compiler.is_compiling() or not no_mode():
            return None  # another mode on the stack is to see the call of torch's attention
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        bias, end = self.key_bias, self.begin + key.shape[2]
        if self.segmented and bias is not None:
            bias = bias[:, self.begin : end]
        found = attend_and_receive(query, key, value, scale=factor, key_bias=bias)
        if found is None:
            return None
        self.begin = end
        out, column = found
        seen = SeenAttention(query, key, factor, self.prefix, bias, None, value, column)
        self.seen.append(seen)
        return out

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Let every call through; remember, and bias, those of the fused attention."""
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and not self.orphaned():
            return self._attend(*args, **kwargs)
        if func is F.multi_head_attention_forward and not self.orphaned():
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
            # After a graph break this very mode is entered while the graph runs: it must not see it again.
            attend = torch.ops.aten.scaled_dot_product_attention
        known = self.places if self.key_bias is None else self.key_bias  # [b, n]
        if known is not None and key.shape[-2] != known.shape[-1]:
            # Not the attention that this tap was opened for.
            return attend(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **options
            )
        if attn_mask is None and not (dropout_p or is_causal or options):
            out = self.attend(query, key, value, scale)
            if out is not None:
                return out
        if self.key_bias is not None and attn_mask is None and fits(query):
            self.look(query, key, None, scale, value)
            factor = query.shape[-1] ** -0.5 if scale is None else scale
            wide = widened(query, key, value, self.key_bias, factor)
            out = attend(*wide, None, dropout_p, is_causal, scale=factor, **options)
            return out[..., : value.shape[-1]]
        attn_mask = self.look(query, key, attn_mask, scale, value)
        if attn_mask is not None and torch.is_grad_enabled() and transformed():
            # Inside torch.vmap torch does not see that a mask learns, and would take a kernel that has no
            # gradient for it.
            attend = torch.ops.aten._scaled_dot_product_attention_math
            given = (query, key, value, attn_mask, dropout_p, is_causal)
            return attend(*given, scale=scale, **options)[0]
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
                f"an nn.MultiheadAttention is called with {', '.join(found)}, which is not supported while "
                "a recipe is attached: detach first, or call the model so that it needs none"
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


def unwatch(attention: nn.Module) -> None:
    """Take the holder of its tap off an attention module. Idempotent."""
    vars(attention).pop(TAP_ATTR, None)


def sweep(*, traced: bool = True) -> None:
    """Take the taps off this thread's stack of modes that an interrupt left there.

    Args:
        traced: those of compiled code too, of which nobody knows whether their attention still runs.
    """
    if torch.compiler.is_dynamo_compiling() or no_mode():
        return
    for mode in entered():
        if isinstance(mode, Tap) and (mode.orphaned() or (traced and mode.traced)):
            mode.close()
