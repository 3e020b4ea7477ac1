"""A packed pass: images of different sizes in one sequence of patches `[r, c]`, without a batch dimension.

Where p patches make one token (Qwen's 2 x 2 groups) they follow each other, and a token is `[p * c]`: what
merges two tokens merges patch i of one with patch i of the other, with one mass a token. The units of a
pass (images, and the slices of a video) never see each other. Those with the same grid are one lot, which
is reduced as a batch `[b, n, p * c]` is, its tokens in raster order; the sequence may have another order
(by windows), in which the tokens that are left stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from tokenzoo.hooks.state import Pass

Grid = tuple[int, int]

_TAG = "_tokenzoo_pack"


@dataclass(frozen=True)
class Lot:
    """The units of a packed pass that have one grid.

    Attributes:
        units: which units of the pass, in their order (b of them).
        state: where they stand; its `places [b, n]` ascend, and None are all.
        first: tokens of each unit when the pass began (N).
        tokens: tokens of each that are left (n).
        order: `[N]`, where each of the first tokens, in raster order, was in its unit's part of the
            sequence; None: there.
        rank: `[b, n]`, the same of the tokens that are left; None: in their order.
    """

    units: tuple[int, ...]
    state: Pass
    first: int
    tokens: int
    order: Tensor | None = None
    rank: Tensor | None = None

    def now(self, state: Pass, tokens: int) -> Lot:
        """The same units after a reduction."""
        rank = None
        if self.order is not None and state.places is not None:
            at = self.order.to(state.places.device)[state.places]  # [b, n]
            rank = at.argsort(-1).argsort(-1)
        return replace(self, state=state, tokens=tokens, rank=rank)


@dataclass(frozen=True)
class Pack:
    """Where a packed pass stands, between two blocks.

    Attributes:
        lots: its units, by grid.
        patches: how many patches make one token (p).
        kept: `[t]` int64, ascending: which of the first tokens of the sequence are left; None: all.
    """

    lots: tuple[Lot, ...]
    patches: int
    kept: Tensor | None = None

    @property
    def lead(self) -> Pass:
        """The state of the first lot, for what is the same in all: steps, and what they watch."""
        return self.lots[0].state

    @property
    def total(self) -> int:
        """Tokens that are left of all units (t)."""
        return sum(lot.tokens * len(lot.units) for lot in self.lots)

    def rows(self, lot: Lot, device: torch.device) -> Tensor:
        """Where the tokens of a lot, in raster order, are in the sequence: `[b, n]`."""
        begin = _column(lot, self._begins(first=False), device)
        rank = torch.arange(lot.tokens, device=device) if lot.rank is None else lot.rank.to(device)
        return begin + rank

    def split(self, x: Tensor) -> list[Tensor]:
        """The tokens of each lot `[b, n, p * c]`, out of the sequence `[t * p, c]`."""
        if len(self.lots) == 1 and self.lots[0].rank is None:
            return [x.reshape(len(self.lots[0].units), self.lots[0].tokens, -1)]
        tokens = x.reshape(self.total, -1)
        return [tokens[self.rows(lot, x.device)] for lot in self.lots]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The sequence `[t, ...]` of values `[b, n, ...]` of each lot's tokens."""
        if len(parts) == 1 and self.lots[0].rank is None:
            return parts[0].flatten(0, 1)
        values = torch.cat([part.flatten(0, 1) for part in parts])
        rows = [self.rows(lot, values.device).flatten() for lot in self.lots]
        return torch.empty_like(values).index_copy(0, torch.cat(rows), values)

    def now(self, lots: Iterable[Lot]) -> Pack:
        """The same pass after a reduction."""
        pack = replace(self, lots=tuple(lots))
        if all(lot.state.places is None for lot in pack.lots):
            return pack
        begins = pack._begins(first=True)
        found: list[Tensor] = []
        for lot in pack.lots:
            places = _places(lot, _device(pack))
            order = places if lot.order is None else lot.order.to(places.device)[places]
            found.append(_column(lot, begins, places.device) + order)
        return replace(pack, kept=pack.join(found))

    def raster(self, device: torch.device) -> Tensor:
        """Which of all first tokens are left, in raster order, unit by unit: `[t]`."""
        begins = self._begins(first=True)
        plain = replace(self, lots=tuple(replace(lot, rank=None) for lot in self.lots))
        return plain.join(
            [_column(lot, begins, device) + _places(lot, device) for lot in self.lots]
        )

    def left(self) -> list[Tensor]:
        """Of each unit, which of its first tokens, in raster order, are left: `[n]` each."""
        found: dict[int, Tensor] = {}
        for lot in self.lots:
            found.update(zip(lot.units, _places(lot, _device(self)), strict=True))
        return [found[unit] for unit in sorted(found)]

    def _begins(self, *, first: bool) -> list[int]:
        """Where each unit begins in the sequence, now or when the pass began."""
        lengths: dict[int, int] = {}
        for lot in self.lots:
            lengths.update(dict.fromkeys(lot.units, lot.first if first else lot.tokens))
        return [0, *accumulate(lengths[unit] for unit in sorted(lengths))]


def begin(
    grids: Sequence[Grid], states: Mapping[Grid, Pass], orders: Mapping[Grid, Tensor], patches: int
) -> Pack:
    """The state before the first block.

    Args:
        grids: rows and columns of the tokens of each unit.
        states: of the units of each grid.
        orders: `Lot.order` of the units of a grid, where there is one.
        patches: how many patches make one token.
    """
    lots: list[Lot] = []
    for grid, state in states.items():
        units = tuple(unit for unit, own in enumerate(grids) if own == grid)
        tokens, order = grid[0] * grid[1], orders.get(grid)
        rank = None if order is None else order.expand(len(units), -1)
        lots.append(Lot(units, state, tokens, tokens, order, rank))
    return Pack(tuple(lots), patches)


def tag(x: Tensor, pack: Pack) -> Tensor:
    """Let the sequence carry the state."""
    setattr(x, _TAG, pack)
    return x


def of(x: Tensor) -> Pack | None:
    """The state that a sequence carries, or None."""
    return getattr(x, _TAG, None)


def _column(lot: Lot, begins: Sequence[int], device: torch.device) -> Tensor:
    """Where the units of a lot begin: `[b, 1]`."""
    return torch.tensor([[begins[unit]] for unit in lot.units], device=device)


def _places(lot: Lot, device: torch.device) -> Tensor:
    """`Pass.places` of a lot, written out: `[b, n]`."""
    if lot.state.places is not None:
        return lot.state.places.to(device)
    return torch.arange(lot.tokens, device=device).expand(len(lot.units), -1)


def _device(pack: Pack) -> torch.device:
    known = (lot.state.places for lot in pack.lots)
    return next((places.device for places in known if places is not None), torch.device("cpu"))
