"""What an attention over patches shows about tokens of p patches each.

A token receives what its patches receive, from all patches of its image: the mean over heads and queries,
the sum over its p patches. So what the tokens of an image receive adds up to 1, as anywhere else. Where a
block of a packed tower attends in windows, a patch gives nothing to those of another window: the map of an
image is block-diagonal, and only the blocks are computed, those of all windows at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenzoo.attention import DeferredAttention, SeenAttention, every_so_often
from tokenzoo.errors import MissingEvidenceError
from tokenzoo.kernels import attention_rows, received_attention, received_in_segments
from tokenzoo.tokens import full_precision


@dataclass(frozen=True)
class PackedAttention:
    """Queries and keys of one attention over a packed sequence of r patches, and how far they see.

    Attributes:
        query, key: `[h, r, d]`, with their positions.
        scale: the factor on the inner products.
        patches: how many patches, one after the other, make a token (p).
        key_bias: `[r]` added to the logits of every query (log mass), or None.
        bounds: `[s + 1]` ints from 0 to r, where the windows begin and end. A window may be empty; none has
            patches of two units, or a part of a token. None: each unit attends to all of itself.
        longest: no window has more patches; only read where there are windows.
        column: `[r]` the attention that each patch receives in its unit, if it was computed already.
    """

    query: Tensor
    key: Tensor
    scale: float
    patches: int
    key_bias: Tensor | None = None
    bounds: Tensor | None = None
    longest: int = 0
    column: Tensor | None = None
    _known: dict[str, Tensor] = field(default_factory=dict, init=False)  # pyright: ignore[reportUnknownVariableType]

    @property
    def plain(self) -> Tensor:
        """`in_windows` of queries that weigh 1 each: `[r]`, for all units; there are windows."""
        if "plain" not in self._known:  # a cached_property has a lock, which cannot be compiled
            ones = torch.ones_like(full_precision(self.key[0, :, 0]))
            self._known["plain"] = self.in_windows(ones)
        return self._known["plain"]

    @property
    def window(self) -> Tensor:
        """Which window each patch is in: `[r]`; there are windows."""
        place = torch.arange(self.key.shape[1], device=self.key.device)
        return torch.searchsorted(self._bounds, place, right=True) - 1

    def in_windows(self, weight: Tensor) -> Tensor:
        """What each patch receives in its window: mean over heads, sum over queries times `weight [r]`."""
        return received_in_segments(
            self.query,
            self.key,
            self._bounds,
            self.longest,
            scale=self.scale,
            key_bias=self.key_bias,
            query_weight=weight,
        )

    @property
    def _bounds(self) -> Tensor:
        if self.bounds is None:
            raise MissingEvidenceError("this attention has no windows")
        return self.bounds.to(self.key.device, torch.int64)


@dataclass(frozen=True, kw_only=True)
class GroupAttention(SeenAttention):
    """The attention of b images with n tokens each: queries and keys `[b, h, n, p * d]`, without prefix.

    The patches of a token stand side by side in `query` and `key`, to be compared as those of patches are;
    only the softmax is about single patches. Those of a token share its `key_bias [b, n]`.

    Attributes:
        patches: the attention over single patches, `[b, h, prefix + n * p, d]`, those of a token one after
            the other.
        group: patches of a token (p).
    """

    patches: SeenAttention
    group: int

    def received(self, queries: str = "all", mass: Tensor | None = None, stride: int = 1) -> Tensor:
        """Mean attention that each token receives: `[b, n]`, the sum over its patches.

        Args:
            queries: "all" or "patches": whether prefix tokens are among the queries.
            mass: `[b, n]` weights of the queries: those of a token's patches.
            stride: take the patches of one in so many tokens as queries, and then no prefix tokens.
        """
        p, prefix, n = self.group, self.patches.prefix, self.query.shape[2]
        every = queries == "all" or prefix == 0
        if self.column is not None and every and mass is None and stride == 1:
            return self.column
        asked = every_so_often(n, 0, stride)
        whole = self.patches.query
        query = _of_patches(_of_tokens(whole[:, :, prefix:], p)[:, :, asked], p)
        weight = None if mass is None else _repeated(mass[:, asked], p)
        bias = self.patches.bias
        if bias is not None and bias.shape[2] > 1:
            b, h, _, columns = bias.shape
            rows = bias[:, :, prefix:].reshape(b, h, n, p, columns)[:, :, asked]
            rows = rows.reshape(b, h, -1, columns)
            bias = (
                torch.cat([bias[:, :, :prefix], rows], 2) if self._asks(queries, stride) else rows
            )
        if self._asks(queries, stride):
            query = torch.cat([whole[:, :, :prefix], query], 2)
            if weight is not None:
                weight = torch.cat([weight.new_ones(weight.shape[0], prefix), weight], 1)
        column = received_attention(
            query,
            self.patches.key,
            scale=self.scale,
            key_bias=self.patches.key_bias,
            bias=bias,
            query_weight=weight,
        )
        return column[:, prefix:].reshape(column.shape[0], n, p).sum(-1)

    def shows(self) -> dict[str, Callable[[], Tensor]]:
        """Return functions that compute the evidence of this attention; CLS is among the patches."""
        shown = super().shows()
        return shown | {"cls_attention": self.cls} if self.patches.prefix else shown

    def _asks(self, queries: str, stride: int) -> bool:
        """Whether prefix tokens are among the queries."""
        return self.patches.prefix > 0 and queries == "all" and stride == 1

    def rows(self, index: Tensor) -> Tensor:
        """Attention of the tokens `index [b, q]` to all, mean over their patches: `[b, h, q, n]`."""
        p = self.group
        at = (index[..., None] * p + torch.arange(p, device=index.device)).flatten(1)  # [b, q * p]
        return self._per_token(self.patches.rows(at), index.shape[1])

    def _per_token(self, rows: Tensor, queries: int) -> Tensor:
        """`[b, h, q, n]` of rows of patches `[b, h, q * p, n * p]`: mean over queries, sum over keys."""
        b, h, p = *rows.shape[:2], self.group
        return rows.reshape(b, h, queries, p, -1, p).mean(3).sum(-1)

    def cls(self) -> Tensor:
        """Attention of the first prefix token (CLS) to each token: `[b, h, n]`.

        Raises:
            MissingEvidenceError: there is no prefix token.
        """
        if not self.patches.prefix:
            raise MissingEvidenceError(
                "this tower has no CLS token; use attention.received(), the attention from all its patches"
            )
        row = self.patches.cls()  # [b, h, n * p]
        return row.reshape(*row.shape[:2], -1, self.group).sum(-1)


@dataclass(frozen=True, kw_only=True)
class WindowedAttention(GroupAttention):
    """The same of a block of a packed tower that attends in windows.

    Attributes:
        packed: the attention of the whole sequence.
        tokens: `[b, n]`, which tokens of the sequence they are: of each unit all, in any order.
    """

    packed: PackedAttention
    tokens: Tensor

    def received(self, queries: str = "all", mass: Tensor | None = None, stride: int = 1) -> Tensor:
        """As without windows, but for `stride`: every patch is a query.

        A window costs little, and subsampling could skip every query of a window.
        """
        del queries, stride
        p = self.group
        if mass is None:
            column, whole = self.packed.plain, self.tokens.shape[1] * p
        else:
            weight = torch.zeros_like(self.packed.plain).reshape(-1, p)
            weight[self.tokens] = mass.to(weight.dtype)[..., None]
            column, whole = self.packed.in_windows(weight.flatten()), mass.sum(-1, True) * p
        return column.reshape(-1, p).sum(-1)[self.tokens] / whole

    def rows(self, index: Tensor) -> Tensor:
        """Attention of the tokens `index [b, q]` to all, mean over their patches: `[b, h, q, n]`."""
        p = self.group
        window = self.packed.window[self.tokens * p]  # [b, n]
        other = window.gather(1, index)[:, :, None] != window[:, None]  # [b, q, n]
        apart = torch.zeros_like(other, dtype=torch.float32).masked_fill(other, -torch.inf)
        apart = apart.repeat_interleave(p, 1).repeat_interleave(p, 2)[:, None]
        at = index[:, None, :, None].expand(-1, self.query.shape[1], -1, self.query.shape[3])
        rows = attention_rows(
            _of_patches(self.query.gather(2, at), p),
            self.patches.key,
            scale=self.scale,
            key_bias=self.patches.key_bias,
            bias=apart,
        )
        return self._per_token(rows, index.shape[1])


def grouped(seen: SeenAttention, group: int, order: Tensor | None) -> DeferredAttention:
    """What an attention over patches in a batch shows about tokens of several patches.

    Args:
        seen: the attention, `[b, h, prefix + n * p, d]`.
        group: patches of a token.
        order: `[prefix + n * p]`, which patches make the tokens one after another; None: they lie so.
    """
    column = seen.column
    if column is not None:
        column = column if order is None else column[:, order]
        column = column[:, seen.prefix :].reshape(len(column), -1, group).sum(-1)  # [b, n]
    make = partial(_grouped, seen, group, order, column)
    return DeferredAttention(make, frozenset(seen.shows()), column)


def _grouped(
    seen: SeenAttention, group: int, order: Tensor | None, column: Tensor | None
) -> GroupAttention:
    if order is not None:
        bias = seen.bias
        if bias is not None and bias.shape[2] > 1:
            bias = bias[:, :, order]
        if bias is not None and bias.shape[3] > 1:
            bias = bias[..., order]
        seen = replace(
            seen,
            query=seen.query[:, :, order],
            key=seen.key[:, :, order],
            value=None if seen.value is None else seen.value[:, :, order],
            key_bias=None if seen.key_bias is None else seen.key_bias[:, order],
            bias=bias,
            column=None,
        )
    prefix, key_bias, value = seen.prefix, seen.key_bias, seen.value
    return GroupAttention(
        _of_tokens(seen.query[:, :, prefix:], group),
        _of_tokens(seen.key[:, :, prefix:], group),
        seen.scale,
        key_bias=None if key_bias is None else key_bias[:, prefix::group],
        value=None if value is None else _of_tokens(value[:, :, prefix:], group),
        column=column,
        patches=seen,
        group=group,
    )


def seen(packed: PackedAttention, tokens: Tensor) -> DeferredAttention:
    """What an attention over a packed sequence shows about the tokens `[b, n]` of b units.

    Args:
        packed: the attention.
        tokens: which tokens of the packed sequence: of each unit all, in any order.
    """
    column = packed.column
    if column is not None:
        column = column.reshape(-1, packed.patches).sum(-1)[tokens]  # [b, n]
    names = frozenset({"keys", "queries", "received_attention"})
    return DeferredAttention(partial(_seen, packed, tokens, column), names, column)


def _seen(packed: PackedAttention, tokens: Tensor, column: Tensor | None) -> GroupAttention:
    p = packed.patches

    def gather(values: Tensor) -> Tensor:  # [h, r, d] -> [b, h, n, p * d]
        h, r, _ = values.shape
        return values.reshape(h, r // p, -1)[:, tokens].transpose(0, 1)

    query, key, bias = gather(packed.query), gather(packed.key), packed.key_bias
    bias = None if bias is None else bias[tokens * p]  # [b, n]
    patches = SeenAttention(
        _of_patches(query, p), _of_patches(key, p), packed.scale, key_bias=_repeated(bias, p)
    )
    shown: dict[str, Any] = {"key_bias": bias, "patches": patches, "group": p, "column": column}
    if packed.bounds is None:
        return GroupAttention(query, key, packed.scale, **shown)
    return WindowedAttention(query, key, packed.scale, **shown, packed=packed, tokens=tokens)


def _of_patches(values: Tensor, group: int) -> Tensor:
    """The patches one after the other: `[b, h, n * p, d]` of `[b, h, n, p * d]`."""
    b, h, n, _ = values.shape
    return values.reshape(b, h, n * group, -1)


def _of_tokens(values: Tensor, group: int) -> Tensor:
    """The patches of a token side by side: `[b, h, n, p * d]` of `[b, h, n * p, d]`."""
    b, h, r, d = values.shape
    return values.reshape(b, h, r // group, group * d)


def _repeated(values: Tensor | None, patches: int) -> Tensor | None:
    """What belongs to tokens `[b, n]`, for each of their patches: `[b, n * p]`."""
    return None if values is None else values.repeat_interleave(patches, 1)
