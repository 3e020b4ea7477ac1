"""The arithmetic of packed passes: what is where, whatever the order of the sequence."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenzoo.hooks import packed_layout as packs
from tokenzoo.hooks.packed_layout import Grid, Pack
from tokenzoo.hooks.state import Pass

grids = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    min_size=1,
    max_size=5,
)


def _begun(shapes: list[Grid], patches: int, shuffled: bool, seed: int) -> Pack:
    torch.manual_seed(seed)
    sizes = {grid: grid[0] * grid[1] for grid in dict.fromkeys(shapes)}
    orders = {grid: torch.randperm(size) for grid, size in sizes.items()} if shuffled else {}
    states = {grid: Pass(None, (), size, grid=grid) for grid, size in sizes.items()}
    return packs.begin(shapes, states, orders, patches)


def _sequence(pack: Pack, shapes: list[Grid]) -> Tensor:
    """Of every token of the first sequence its unit, and its place in raster order: `[t, 2]`."""
    rows: list[Tensor] = []
    orders = {lot.units: lot.order for lot in pack.lots}
    for unit, (height, width) in enumerate(shapes):
        order = next(order for units, order in orders.items() if unit in units)
        places = torch.arange(height * width)
        if order is not None:
            places = torch.empty_like(order).scatter(0, order, places)
        rows.append(torch.stack([torch.full_like(places, unit), places], 1))
    return torch.cat(rows)


def _reduced(pack: Pack, seed: int) -> Pack:
    """Some tokens of each unit, equally many in a lot, in ascending order."""
    torch.manual_seed(seed)
    lots = []
    for lot in pack.lots:
        keep = int(torch.randint(1, lot.tokens + 1, ()))
        chosen = torch.stack([torch.randperm(lot.tokens)[:keep].sort().values for _ in lot.units])
        places = lot.state.places
        places = chosen if places is None else places.gather(1, chosen)
        lots.append(lot.now(Pass(None, (), lot.first, places=places), keep))
    return pack.now(lots)


@given(grids, st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_lots_are_in_raster_order_and_go_back_to_their_places(
    shapes: list[Grid], patches: int, shuffled: bool, seed: int
) -> None:
    pack = _begun(shapes, patches, shuffled, seed)
    tokens = _sequence(pack, shapes)
    x = tokens.repeat_interleave(patches, 0)  # [r, 2]
    parts = pack.split(x)
    for lot, part in zip(pack.lots, parts, strict=True):
        b, n = len(lot.units), lot.tokens
        assert part.shape == (b, n, patches * 2)
        assert (part[..., 0] == torch.tensor(lot.units)[:, None]).all()
        for patch in range(patches):
            assert (part[..., 2 * patch + 1] == torch.arange(n)).all()
    assert torch.equal(pack.join(parts).reshape(-1, 2), x)
    assert pack.kept is None


@given(grids, st.booleans(), st.integers(0, 99))
def test_what_is_left_keeps_the_order_of_the_sequence(
    shapes: list[Grid], shuffled: bool, seed: int
) -> None:
    begun = _begun(shapes, 1, shuffled, seed)
    tokens = _sequence(begun, shapes)
    pack = begun
    for again in range(2):  # reductions compose
        before, pack = pack, _reduced(pack, seed + again)
        now = tokens if before.kept is None else tokens[before.kept]
        assert pack.kept is not None
        assert (pack.kept.diff() > 0).all()
        assert len(pack.kept) == pack.total <= len(now)
        left = tokens[pack.kept]
        assert (left[:, 0].diff() >= 0).all()  # unit after unit
        for lot, part in zip(pack.lots, pack.split(left), strict=True):
            assert lot.state.places is not None
            assert (part[..., 0] == torch.tensor(lot.units)[:, None]).all()
            assert torch.equal(part[..., 1], lot.state.places)
        assert torch.equal(pack.join(pack.split(left)), left)


@given(grids, st.booleans(), st.integers(0, 99))
def test_the_rows_that_are_left_in_raster_order(
    shapes: list[Grid], shuffled: bool, seed: int
) -> None:
    begun = _begun(shapes, 1, shuffled, seed)
    tokens = _sequence(begun, shapes)
    pack = _reduced(begun, seed)
    assert pack.kept is not None
    # All first tokens in raster order, unit by unit: what a tower makes of its sequence at the end.
    every = tokens[(tokens[:, 0] * 100 + tokens[:, 1]).argsort()]
    rows = every[pack.raster(torch.device("cpu"))]
    left = tokens[pack.kept]
    assert torch.equal(rows, left[(left[:, 0] * 100 + left[:, 1]).argsort()])
    mine = [left[left[:, 0] == unit, 1].sort().values for unit in range(len(shapes))]
    for found, wanted in zip(pack.left(), mine, strict=True):
        assert torch.equal(found, wanted)
