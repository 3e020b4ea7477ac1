"""Queries and keys of an attention, from which any part of its map can be computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tokenzoo.kernels import attention_rows, received_attention


@dataclass(frozen=True)
class SeenAttention:
    """Queries and keys of one attention, prefix tokens included, and the terms of its softmax.

    Attributes:
        query, key: `[b, h, n, d]`.
        scale: the factor on the inner products.
        prefix: number of prefix tokens among the n.
        key_bias: `[b, n]` added to the logits (log mass), or None.
        bias: added to the logits by the model (relative positions), broadcasts to `[b, h, n, n]`, with four
            dimensions; or None.
        value: `[b, h, n, d]`, or None.
        column: `[b, n]` the attention that each token receives from all, if it was computed already.
    """

    query: Tensor
    key: Tensor
    scale: float
    prefix: int = 0
    key_bias: Tensor | None = None
    bias: Tensor | None = None
    value: Tensor | None = None
    column: Tensor | None = None

    def shows(self) -> dict[str, Callable[[], Tensor]]:
        """Return functions that compute the evidence of this attention, by name."""
        shown: dict[str, Callable[[], Tensor]] = {
            "keys": partial(_after, self.key, self.prefix),
            "queries": partial(_after, self.query, self.prefix),
            "received_attention": self.received,
        }
        if self.prefix > 0:
            shown["cls_attention"] = self.cls
        if self.value is not None:
            shown["values"] = partial(_after, self.value, self.prefix)
        return shown

    def received(self, queries: str = "all", mass: Tensor | None = None, stride: int = 1) -> Tensor:
        """Return the mean attention that each patch token receives: `[b, n - prefix]`.

        Args:
            queries: "all", or "patches" without CLS and registers.
            mass: `[b, n - prefix]` weights of the queries; prefix tokens have weight 1.
            stride: use every stride-th query only, as an estimate.
        """
        p = self.prefix
        if self.column is not None and queries == "all" and mass is None and stride == 1:
            return self.column[:, p:]
        chosen = every_so_often(self.query.shape[2], p if queries == "patches" else 0, stride)
        weight = mass
        if mass is not None:
            weight = torch.cat([mass.new_ones(mass.shape[0], p), mass], 1)[:, chosen]
        column = received_attention(
            self.query[:, :, chosen],
            self.key,
            scale=self.scale,
            key_bias=self.key_bias,
            bias=self._bias_of(chosen),
            query_weight=weight,
        )
        return column[:, p:]

    def rows(self, index: Tensor) -> Tensor:
        """Return the attention of patch tokens `index [b, q]` to all of them: `[b, h, q, n - prefix]`."""
        b, h, _, d = self.query.shape
        at = (index + self.prefix)[:, None, :, None]  # [b, 1, q, 1]
        bias = self.bias
        if bias is not None and bias.shape[2] > 1:
            full = bias.expand(b, -1, -1, -1)
            bias = full.gather(2, at.expand(-1, full.shape[1], -1, full.shape[3]))
        rows = attention_rows(
            self.query.gather(2, at.expand(b, h, -1, d)),
            self.key,
            scale=self.scale,
            key_bias=self.key_bias,
            bias=bias,
        )
        return rows[..., self.prefix :]

    def cls(self) -> Tensor:
        """Return the attention of the first token (CLS) to the patch tokens: `[b, h, n - prefix]`."""
        row = attention_rows(
            self.query[:, :, :1],
            self.key,
            scale=self.scale,
            key_bias=self.key_bias,
            bias=self._bias_of(slice(0, 1)),
        )
        return row[:, :, 0, self.prefix :]

    def _bias_of(self, queries: slice) -> Tensor | None:
        """Return the model's bias for some of the queries."""
        if self.bias is None or self.bias.shape[2] == 1:
            return self.bias
        return self.bias[:, :, queries]


class DeferredAttention:
    """An attention that is put in order when a part reads it: its queries and keys are large.

    Args:
        make: returns it.
        names: the evidence that it shows.
        column: `[b, n]` the attention that each token receives from all, if it was computed already.
    """

    def __init__(
        self,
        make: Callable[[], SeenAttention],
        names: frozenset[str],
        column: Tensor | None = None,
    ) -> None:
        self._make = make
        self._names = names
        self._column = column
        self._made: list[SeenAttention] = []

    def made(self) -> SeenAttention:
        """Return the attention, made once."""
        if not self._made:  # a cached_property has a lock, which cannot be compiled
            self._made.append(self._make())
        return self._made[0]

    def shows(self) -> dict[str, Callable[[], Tensor]]:
        """Return functions that compute the evidence of this attention, by name."""
        return {name: partial(self._value, name) for name in self._names}

    def _value(self, name: str) -> Tensor:
        if name == "received_attention" and self._column is not None:
            return self._column
        return self.made().shows()[name]()


def _after(values: Tensor, prefix: int) -> Tensor:
    """Cut prefix tokens off `[b, h, n, d]`."""
    return values[:, :, prefix:]


def every_so_often(tokens: int, first: int, stride: int) -> slice:
    """Return a slice of every stride-th token from `first` on, of at least one token."""
    return slice(first + min(stride, tokens - first) // 2, None, stride)
