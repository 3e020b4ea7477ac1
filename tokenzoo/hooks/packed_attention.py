"""What the attention of a packed tower shows about its tokens, of p patches each.

A token receives what its patches receive, from all patches of its unit: the mean over heads and queries,
the sum over its p patches. So what the tokens of a unit receive adds up to 1, as anywhere else. Where a
block attends in windows, a patch gives nothing to those of another window: the map of a unit is
block-diagonal, and only the blocks are computed, those of all windows at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenzoo.attention import SeenAttention, every_so_often
from tokenzoo.errors import MissingEvidenceError
from tokenzoo.kernels import attention_rows, received_attention, received_in_segments
from tokenzoo.tokens import full_precision


@dataclass(frozen=True)
class PackedAttention:
    """Queries and keys of one attention over a packed sequence of r patches, and how far they see.

    Attributes:
        query, key: `[h, r, d]`, with their positions.
        scale: the factor on the inner products.
        patches: how many patches, one behind the other, make a token (p).
        key_bias: `[r]` added to the logits of every query (log mass), or None.
        bounds: `[s + 1]` ints from 0 to r, where the windows begin and end. A window may be empty; none has
            patches of two units, or a part of a token. None: each unit attends to all of itself.
        longest: no window has more patches; only read where there are windows.
    """

    query: Tensor
    key: Tensor
    scale: float
    patches: int
    key_bias: Tensor | None = None
    bounds: Tensor | None = None
    longest: int = 0
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
    """The attention of b units with n tokens each: queries and keys `[b, h, n, p * d]`, no prefix.

    The patches of a token stand side by side in `query` and `key`, to be compared as those of patches are;
    only the softmax is about single patches. Those of a token share its `key_bias [b, n]`.

    Attributes:
        packed: the attention that they are of.
        tokens: `[b, n]`, which tokens of the packed sequence they are: of each unit all, in any order.
    """

    packed: PackedAttention
    tokens: Tensor

    def received(self, queries: str = "all", mass: Tensor | None = None, stride: int = 1) -> Tensor:
        """Mean attention that each token receives: `[b, n]`, of which each row sums to 1.

        Args:
            queries: "all" or "patches", which is the same here.
            mass: `[b, n]` weights of the queries: those of a token's patches.
            stride: the patches of one in so many tokens are asked; where there are windows, all: a window
                costs little, and its tokens would get nothing if none of them were asked.
        """
        del queries
        p = self.packed.patches
        if self.packed.bounds is None:
            asked = every_so_often(self.tokens.shape[1], 0, stride)
            column = received_attention(
                self._of_patches(self.query[:, :, asked]),
                self._of_patches(self.key),
                scale=self.scale,
                key_bias=_repeated(self.key_bias, p),
                query_weight=None if mass is None else _repeated(mass[:, asked], p),
            )
            return column.reshape(*self.tokens.shape, p).sum(-1)
        if mass is None:
            column, whole = self.packed.plain, self.tokens.shape[1] * p
        else:
            weight = torch.zeros_like(self.packed.plain).reshape(-1, p)
            weight[self.tokens] = mass.to(weight.dtype)[..., None]
            column, whole = self.packed.in_windows(weight.flatten()), mass.sum(-1, True) * p
        return column.reshape(-1, p).sum(-1)[self.tokens] / whole

    def rows(self, index: Tensor) -> Tensor:
        """Attention of the tokens `index [b, q]` to all, mean over their patches: `[b, h, q, n]`."""
        p = self.packed.patches
        at = index[:, None, :, None].expand(-1, self.query.shape[1], -1, self.query.shape[3])
        apart = None
        if self.packed.bounds is not None:
            window = self.packed.window[self.tokens * p]  # [b, n]
            other = window.gather(1, index)[:, :, None] != window[:, None]  # [b, q, n]
            apart = torch.zeros_like(other, dtype=torch.float32).masked_fill(other, -torch.inf)
            apart = apart.repeat_interleave(p, 1).repeat_interleave(p, 2)[:, None]
        rows = attention_rows(
            self._of_patches(self.query.gather(2, at)),
            self._of_patches(self.key),
            scale=self.scale,
            key_bias=_repeated(self.key_bias, p),
            bias=apart,
        )
        b, h = rows.shape[:2]
        return rows.reshape(b, h, index.shape[1], p, -1, p).mean(3).sum(-1)

    def cls(self) -> Tensor:
        """There is none.

        Raises:
            MissingEvidenceError: always.
        """
        raise MissingEvidenceError(
            "a packed tower has no CLS token; take attention.received(), which all its patches give"
        )

    def _of_patches(self, values: Tensor) -> Tensor:
        """The patches one behind the other: `[b, h, n * p, d]` of `[b, h, n, p * d]`."""
        b, h, n, _ = values.shape
        return values.reshape(b, h, n * self.packed.patches, -1)


def seen(packed: PackedAttention, tokens: Tensor) -> GroupAttention:
    """What an attention shows about the tokens `[b, n]` of b units.

    Args:
        packed: the attention.
        tokens: which tokens of the packed sequence: of each unit all, in any order.
    """

    def gather(values: Tensor) -> Tensor:  # [h, r, d] -> [b, h, n, p * d]
        h, r, _ = values.shape
        return values.reshape(h, r // packed.patches, -1)[:, tokens].transpose(0, 1)

    bias = packed.key_bias
    return GroupAttention(
        gather(packed.query),
        gather(packed.key),
        packed.scale,
        key_bias=None if bias is None else bias[tokens * packed.patches],
        packed=packed,
        tokens=tokens,
    )


def _repeated(values: Tensor | None, patches: int) -> Tensor | None:
    """What belongs to tokens `[b, n]`, for each of their patches: `[b, n * p]`."""
    return None if values is None else values.repeat_interleave(patches, 1)
