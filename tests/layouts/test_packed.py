"""The arithmetic of packed sequences: what is where, whatever the order of the sequence."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenzoo.layouts import PackedLayout
from tokenzoo.layouts.base import Grid

grids = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5)


def _begun(shapes: list[Grid], patches: int, shuffled: bool, seed: int) -> PackedLayout:
    torch.manual_seed(seed)
    sizes = {grid: grid[0] * grid[1] for grid in dict.fromkeys(shapes)}
    orders = {grid: torch.randperm(size) for grid, size in sizes.items()} if shuffled else {}
    return PackedLayout.of(shapes, orders, group=patches)


def _sequence(layout: PackedLayout, shapes: list[Grid]) -> Tensor:
    """Of every token of the first sequence its unit, and its place in raster order: `[t, 2]`."""
    rows: list[Tensor] = []
    pairs = zip(layout.buckets, layout.orders, strict=True)
    orders = {bucket.images: order for bucket, order in pairs}
    for unit, (height, width) in enumerate(shapes):
        order = next(order for units, order in orders.items() if unit in units)
        places = torch.arange(height * width)
        if order is not None:
            places = torch.empty_like(order).scatter(0, order, places)
        rows.append(torch.stack([torch.full_like(places, unit), places], 1))
    return torch.cat(rows)


def _reduced(layout: PackedLayout, seed: int) -> PackedLayout:
    """Some tokens of each unit, equally many in a bucket, in ascending order."""
    torch.manual_seed(seed)
    buckets = []
    for bucket in layout.buckets:
        keep = int(torch.randint(1, bucket.tokens + 1, ()))
        order = torch.rand(len(bucket.images), bucket.tokens).argsort(1)
        places = order[:, :keep].sort(1).values
        if bucket.places is not None:
            places = bucket.places.gather(1, places)
        buckets.append(replace(bucket, tokens=keep, places=places))
    return layout.reduced(buckets)


@given(grids, st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_buckets_are_in_raster_order_and_go_back_to_their_places(
    shapes: list[Grid], patches: int, shuffled: bool, seed: int
) -> None:
    layout = _begun(shapes, patches, shuffled, seed)
    tokens = _sequence(layout, shapes)
    x = tokens.repeat_interleave(patches, 0)  # [r, 2]
    parts = layout.split(x)
    for bucket, part in zip(layout.buckets, parts, strict=True):
        b, n = len(bucket.images), bucket.tokens
        assert part.shape == (b, n, patches * 2)
        assert (part[..., 0] == torch.tensor(bucket.images)[:, None]).all()
        for patch in range(patches):
            assert (part[..., 2 * patch + 1] == torch.arange(n)).all()
    assert torch.equal(layout.join(parts).reshape(-1, 2), x)
    assert layout.kept is None


@given(grids, st.booleans(), st.integers(0, 99))
def test_what_is_left_keeps_the_order_of_the_sequence(
    shapes: list[Grid], shuffled: bool, seed: int
) -> None:
    begun = _begun(shapes, 1, shuffled, seed)
    tokens = _sequence(begun, shapes)
    raster = tokens[:, 0] * 100 + tokens[:, 1]
    layout = begun
    for again in range(2):  # reductions compose
        before, layout = layout, _reduced(layout, seed + again)
        now = tokens if before.kept is None else tokens[before.kept]
        assert layout.kept is not None
        assert (layout.kept.diff() > 0).all()
        assert len(layout.kept) == layout.total <= len(now)
        left = tokens[layout.kept]
        assert (left[:, 0].diff() >= 0).all()  # unit after unit
        for bucket, part in zip(layout.buckets, layout.split(left), strict=True):
            assert bucket.places is not None
            assert (part[..., 0] == torch.tensor(bucket.images)[:, None]).all()
            assert torch.equal(part[..., 1], bucket.places)
        assert torch.equal(layout.join(layout.split(left)), left)
        # All first tokens in raster order, unit by unit: what a tower makes of its sequence at the end.
        rows = tokens[raster.argsort()][layout.raster(torch.device("cpu"))]
        assert torch.equal(rows, left[raster[layout.kept].argsort()])
