"""Batches whose tokens are groups of patches: where the patches are, before and after a reduction."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenzoo.errors import BadArgumentError
from tokenzoo.layouts import BatchedLayout


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 4, 9]), st.integers(0, 2))
def test_groups_are_in_raster_order_and_their_patches_too(
    rows: int, columns: int, group: int, prefix: int
) -> None:
    g, n = int(group**0.5), rows * columns
    grid = (rows, columns)
    layout = BatchedLayout.of(n, prefix=prefix, group=group, grid=grid, positional=True)
    patches = torch.arange(n * group).view(rows * g, columns * g)
    x = torch.cat([-1 - torch.arange(prefix), patches.flatten()])[None, :, None].repeat(2, 1, 3)
    (tokens,) = layout.split(x)
    assert tokens.shape == (2, prefix + n, group * 3)
    for i in range(rows):
        for j in range(columns):
            own = patches[i * g : (i + 1) * g, j * g : (j + 1) * g].flatten()
            found = tokens[0, prefix + i * columns + j].view(group, 3)
            assert torch.equal(found, own[:, None].expand(-1, 3))
    assert torch.equal(layout.join([tokens]), x)
    assert layout.length(x) == layout.rows()

    # Some tokens are left: their places say which patches their rows were.
    torch.manual_seed(n)
    kept = torch.stack([torch.randperm(n)[: 1 + n // 2] for _ in range(2)])
    bucket = replace(layout.bucket, tokens=kept.shape[1], places=kept)
    after = layout.reduced([bucket])
    at = torch.cat([torch.arange(prefix).expand(2, -1), kept + prefix], 1)
    part = tokens.gather(1, at[..., None].expand(-1, -1, group * 3))
    left = after.join([part])
    assert after.length(left) == after.rows()
    assert torch.equal(after.split(left)[0], part)
    places = torch.arange(n)[kept] if after.places is None else after.places
    assert torch.equal(x[0, :, 0][places], left[..., 0])
    assert after.begun() == layout


@pytest.mark.parametrize(
    ("tokens", "group", "grid", "named"),
    [(12, 6, (3, 4), "group=6"), (12, 4, None, "grid=None"), (12, 4, (3, 3), r"grid=\(3, 3\)")],
)
def test_groups_are_squares_of_a_whole_grid(
    tokens: int, group: int, grid: tuple[int, int] | None, named: str
) -> None:
    with pytest.raises(BadArgumentError, match=named):
        BatchedLayout.of(tokens, group=group, grid=grid)
