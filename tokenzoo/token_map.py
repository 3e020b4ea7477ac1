"""Token maps: the record of which input token is part of which output token of a reduction.

A `TokenMap` is provenance, not arithmetic: the merger does the arithmetic. Token maps compose; the
composition maps the patches of the image to the last tokens and serves unmerging, pictures, positions and
debugging.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.precision import exporting, transformed
from tokenzoo._core.quoting import quote
from tokenzoo._core.sorting import ordered
from tokenzoo._core.tensors import holds
from tokenzoo._core.validation import check_kind, is_kind
from tokenzoo.errors import BadArgumentError
from tokenzoo.tokens import Tokens, shape_of


def take(values: Tensor, index: Tensor) -> Tensor:
    """Gather along the tokens: `values [b, n]` or `[b, n, c]` at `index [b, m]`."""
    if values.ndim == 2:
        return values.gather(1, index)  # [b, m]
    # Whole rows: a gather reads an index per channel, which takes a CPU longer.
    return values[torch.arange(index.shape[0], device=index.device)[:, None], index]  # [b, m, c]


@dataclass(frozen=True)
class TokenMap:
    """A reduction of n tokens to m, for each image of a batch.

    Attributes:
        keep: `[b, m]` int64, the input token that each output token stands for; -1: a new token.
        dst: `[b, n]` int64, the output token that each input token is part of; -1: dropped.
        lengths: `[b]` int64, how many of the m outputs are real, for the recipes whose count comes from
            the data; None: all of them.
        held: `[b, m]` bool, the outputs that the matcher or the caller protected; None: no output.
        complete: True if there is no -1 (nothing is dropped, no token is new). Lets callers skip the
            handling of -1; False is always safe.
    """

    keep: Tensor
    dst: Tensor
    lengths: Tensor | None = None
    held: Tensor | None = None
    complete: bool = False

    @property
    def tokens(self) -> int:
        """The number of tokens before (n)."""
        return self.dst.shape[1]

    @property
    def kept(self) -> int:
        """The number of tokens after (m)."""
        return self.keep.shape[1]

    @property
    def sources(self) -> Tensor:
        """`keep` with 0 for -1, as indices to gather with."""
        return self.keep if self.complete else self.keep.clamp_min(0)

    @property
    def targets(self) -> Tensor:
        """`dst` with 0 for -1, as indices to gather with."""
        return self.dst if self.complete else self.dst.clamp_min(0)

    @classmethod
    def identity(cls, batch: int, tokens: int, *, device: torch.device | None = None) -> TokenMap:
        """Return the token map that changes nothing.

        Raises:
            BadArgumentError: a number that is not an int.
        """
        for name, size in (("batch", batch), ("tokens", tokens)):
            # By its type alone: a comparison would be a guard on what torch.export leaves open.
            if not is_kind(size, int | torch.SymInt):
                raise BadArgumentError(f"{name}={quote(size)}; it must be an int >= 0")
        index = torch.arange(tokens, device=device).expand(batch, tokens)  # [b, n]
        return cls(index, index, complete=True)

    @classmethod
    def from_slots(
        cls, keep: Tensor, moved: Tensor, slots: Tensor, tokens: int, *, complete: bool = False
    ) -> TokenMap:
        """Build a token map from the kept tokens and the slots of the others.

        Args:
            keep: `[b, m]` distinct input tokens, or -1 for a new token, in output order.
            moved: `[b, n - m]` the input tokens that are not kept.
            slots: `[b, n - m]` the output token that each of `moved` joins; -1: dropped.
            tokens: n.
            complete: whether there is no -1 among `keep` and `slots`.
        """
        b, m = keep.shape
        own = torch.arange(m, device=keep.device).expand(b, m)
        if complete:
            dst = keep.new_empty(b, tokens).scatter(1, moved, slots).scatter(1, keep, own)
            return cls(keep, dst, complete=True)
        # A new token (-1) has no input: it writes to column n, which is cut off.
        index = keep % (tokens + 1)
        dst = keep.new_full((b, tokens + 1), -1)
        dst = dst.scatter(1, moved, slots).scatter(1, index, own)
        return cls(keep, dst[:, :tokens])

    @classmethod
    def from_joins(cls, gone: Tensor, into: Tensor, tokens: int) -> TokenMap:
        """Build a token map from the tokens that join others; the outputs are in order of position.

        Args:
            gone: `[b, r]` distinct input tokens that are not kept.
            into: `[b, r]` the kept input token that each of them joins.
            tokens: n.
        """
        b, m = gone.shape[0], tokens - gone.shape[1]
        slot = gone.new_ones(b, tokens).scatter(1, gone, 0).cumsum(1) - 1  # [b, n]
        place = torch.arange(tokens, device=gone.device).expand(b, tokens)
        # Tokens that are gone write to an extra slot, which is cut off.
        dst = slot.scatter(1, gone, m)
        keep = gone.new_empty(b, m + 1).scatter(1, dst, place)[:, :m]
        return cls(keep, dst.scatter(1, gone, take(slot, into)), complete=True)

    def sum(self, values: Tensor) -> Tensor:
        """Add up values `[b, n]` or `[b, n, c]` over the inputs of each output: `[b, m]`, `[b, m, c]`.

        Raises:
            BadArgumentError: the values do not have n tokens.
        """
        b, n = self.dst.shape
        m = self.kept
        if not is_kind(values, Tensor) or values.shape[:2] != self.dst.shape:
            raise BadArgumentError(
                f"values have shape {shape_of(values)}; this token map begins with {n} tokens for each of "
                f"{b} images: [{b}, {n}, ...]"
            )
        # An extra slot per image receives dropped tokens: -1 becomes m. Rows, not elements, are added
        # (index_add); sum-then-divide is exact in ONNX, too.
        width = m if self.complete else m + 1
        slots = self.dst if self.complete else self.dst % width
        if values.ndim == 2:
            return values.new_zeros(b, width).scatter_add(1, slots, values)[:, :m]
        slots = slots + torch.arange(0, b * width, width, device=slots.device)[:, None]
        flat = values.reshape(b * n, *values.shape[2:])
        sums = flat.new_zeros(b * width, *values.shape[2:])
        # In place: no copy of the zeros. Inside vmap the slots alone may be batched, and they could not be.
        add = sums.index_add if exporting() or transformed() else sums.index_add_
        sums = add(0, slots.flatten(), flat)
        return sums.view(b, width, *values.shape[2:])[:, :m]

    def of_kept(self, values: Tensor) -> Tensor:
        """Gather values `[b, n]` or `[b, n, c]` of the kept tokens; zeros for new tokens."""
        gathered = take(values, self.sources)
        if self.complete:
            return gathered
        new = self.keep < 0
        return gathered.masked_fill(new if values.ndim == 2 else new[..., None], 0)

    def carry(self, tokens: Tokens, x: Tensor, mass: Tensor | None = None) -> Tokens:
        """Return the reduced tokens with features `x [b, m, c]` and the masses of their members.

        A caller that has computed `sum(tokens.mass)` passes it as `mass [b, m]`.
        """
        held = self.held
        if held is None and tokens.held is not None:
            held = take(tokens.held, self.sources)
            held = held if self.complete else held & (self.keep >= 0)
        return Tokens(x, self.sum(tokens.mass) if mass is None else mass, held=held)

    def unmerge(self, y: Tensor, fill: float | Tensor = 0.0) -> Tensor:
        """Copy outputs `[b, m, ...]` back to the inputs that they stand for: `[b, n, ...]`.

        Dropped tokens receive `fill`, a number or values `[b, n, ...]`.

        Raises:
            BadArgumentError: `y` does not have m tokens, or `fill` neither n nor one number.
        """
        if not is_kind(y, Tensor) or y.ndim < 2 or y.shape[:2] != self.keep.shape:
            raise BadArgumentError(
                f"y has shape {shape_of(y)}; this token map ends with {self.kept} tokens for each of "
                f"{self.keep.shape[0]} images: [{self.keep.shape[0]}, {self.kept}, ...]"
            )
        whole = (*self.dst.shape, *y.shape[2:])
        number = isinstance(fill, int | float)
        if number and not holds(y.dtype, fill):
            raise BadArgumentError(f"fill={quote(fill)}; it must be a number that {y.dtype} holds")
        if not number and (not is_kind(fill, Tensor) or fill.shape != whole):
            raise BadArgumentError(
                f"fill has shape {shape_of(fill)}; it must be one number, or a tensor {list(whole)}"
            )
        flat = y.flatten(2) if y.ndim > 2 else y
        spread = take(flat, self.targets)
        if self.complete:
            return spread.view(whole)
        dropped = self.dst < 0
        dropped = dropped if flat.ndim == 2 else dropped[..., None]
        if isinstance(fill, Tensor):
            spread = torch.where(dropped, fill.view_as(spread), spread)
        else:
            spread = spread.masked_fill(dropped, fill)
        return spread.view(whole)

    def then(self, later: TokenMap) -> TokenMap:
        """Compose: this token map, followed by `later` on its outputs.

        Raises:
            BadArgumentError: `later` does not begin with as many tokens as this token map ends with.
        """
        if check_kind("later", later, TokenMap).tokens != self.kept:
            raise BadArgumentError(
                f"a token map that ends with {self.kept} tokens cannot be composed with one that begins "
                f"with {later.tokens}"
            )
        # A token that is new here, or becomes new later, stands for no input token: -1 stays -1.
        keep, dst = take(self.keep, later.sources), take(later.dst, self.targets)
        keep = keep if later.complete else torch.where(later.keep < 0, -1, keep)
        dst = dst if self.complete else torch.where(self.dst < 0, -1, dst)
        return TokenMap(keep, dst, later.lengths, later.held, self.complete and later.complete)

    def reordered(self, key: Tensor) -> TokenMap:
        """Return the token map with its outputs in ascending order of `key [b, m]` (stable)."""
        order = ordered(key)  # [b, m]
        slots = torch.arange(self.kept, device=key.device).expand_as(order)
        # Dropped tokens (-1) index the last column, which holds -1.
        width = self.kept + 1
        rank = order.new_full((order.shape[0], width), -1).scatter(1, order, slots)
        dst = take(rank, self.dst if self.complete else self.dst % width)
        held = None if self.held is None else take(self.held, order)
        return TokenMap(take(self.keep, order), dst, self.lengths, held, self.complete)

    def by_position(self) -> TokenMap:
        """Return the token map with its outputs in order of their representatives; new tokens last."""
        return self.reordered(
            self.keep if self.complete else self.keep % (self.tokens + 1)
        )  # -1: n

    def with_held(self, free: Tensor, held: Tensor) -> TokenMap:
        """Extend a token map of the tokens `free [b, f]` to all tokens; `held [b, h]` stay as they are.

        The outputs are in the order of their representatives.
        """
        keep = take(free, self.sources)
        keep = keep if self.complete else torch.where(self.keep < 0, -1, keep)
        keep = torch.cat([keep, held], 1)
        slots = torch.arange(self.kept, self.kept + held.shape[1], device=held.device)
        dst = torch.cat([self.dst, slots.expand_as(held)], 1)
        order = torch.cat([free, held], 1).argsort(dim=-1)
        lengths = None if self.lengths is None else self.lengths + held.shape[1]
        marks = torch.zeros_like(self.keep, dtype=torch.bool) if self.held is None else self.held
        marks = torch.cat([marks, torch.ones_like(held, dtype=torch.bool)], 1)
        return TokenMap(keep, take(dst, order), lengths, marks, self.complete).by_position()

    def after_prefix(self, prefix: int) -> TokenMap:
        """Return the token map of the sequence with `prefix` untouched tokens in front."""
        if prefix == 0:
            return self
        b = self.keep.shape[0]
        own = torch.arange(prefix, device=self.keep.device).expand(b, prefix)
        keep, dst = self.keep + prefix, self.dst + prefix
        if not self.complete:
            keep = torch.where(self.keep < 0, self.keep, keep)
            dst = torch.where(self.dst < 0, self.dst, dst)
        lengths = None if self.lengths is None else self.lengths + prefix
        held = self.held
        if held is not None:
            held = torch.cat([held.new_zeros(b, prefix), held], 1)
        keep, dst = torch.cat([own, keep], 1), torch.cat([own, dst], 1)
        return TokenMap(keep, dst, lengths, held, self.complete)

    def check(self) -> None:
        """Raise if keep and dst contradict each other; for tests and debugging (it waits for the device).

        Raises:
            BadArgumentError: `keep` or `dst` is not an index tensor or out of range, a token is kept
                twice, or kept in one slot and counted in another.
        """
        for name, index in (("keep", self.keep), ("dst", self.dst)):
            integral = is_kind(index, Tensor) and index.dtype == torch.int64
            if not integral or index.ndim != 2:
                raise BadArgumentError(
                    f"{name} has shape {shape_of(index)} and dtype {getattr(index, 'dtype', None)}; it "
                    "must be an int64 tensor [images, tokens]"
                )
        b, m = self.keep.shape
        n = self.tokens
        if self.dst.shape[0] != b:
            raise BadArgumentError(f"keep is for {b} images, dst for {self.dst.shape[0]}")
        least = 0 if self.complete else -1
        for name, index, limit in (("keep", self.keep, n), ("dst", self.dst, m)):
            if bool(((index < least) | (index >= limit)).any()):
                said = ", and complete=True excludes -1" if self.complete else ""
                raise BadArgumentError(f"{name} has indices outside {least} .. {limit - 1}{said}")
        old = self.keep >= 0
        slots = torch.arange(m, device=self.keep.device).expand(b, m)
        home = take(self.dst, self.keep.clamp_min(0))
        if bool((old & (home != slots)).any()):
            raise BadArgumentError("a kept token is not in its own slot: dst[keep[i]] must be i")
