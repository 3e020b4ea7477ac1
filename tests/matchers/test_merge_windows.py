"""Windows of the grid merge, the most alike first: against a loop over windows and pairs."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenzoo import Evidence
from tokenzoo.errors import MissingEvidenceError
from tokenzoo.matchers import MergeWindows


def shown(x: Tensor, grid: tuple[int, int] | None) -> Evidence:
    return Evidence(x, mass=torch.ones(x.shape[:2]), grid=grid)


def by_hand(x: Tensor, grid: tuple[int, int], size: int, keep: int) -> list[int]:
    """Of one image `[n, c]`: the token that each token is part of."""
    rows, columns = grid
    windows: dict[tuple[int, int], list[int]] = {}
    for i in range(rows):
        for j in range(columns):
            windows.setdefault((i // size, j // size), []).append(i * columns + j)
    cosine = F.cosine_similarity(x[:, None], x[None], dim=-1)

    def alike(window: list[int]) -> float:
        pairs = [float(cosine[a, b]) for a, b in combinations(window, 2)]
        return sum(pairs) / len(pairs) if pairs else -2.0

    home, left = list(range(rows * columns)), rows * columns - keep
    for window in sorted(windows.values(), key=alike, reverse=True):
        for token in window[1:]:
            if left:
                home[token], left = window[0], left - 1
    return home


@pytest.mark.parametrize("grid", [(6, 6), (7, 5), (3, 8), (1, 7), (2, 2)])
@pytest.mark.parametrize("size", [2, 3])
def test_the_most_alike_windows_merge_into_their_first_tokens(
    grid: tuple[int, int], size: int
) -> None:
    n = grid[0] * grid[1]
    x = torch.randn(3, n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matcher = MergeWindows(size)
    windows = -(-grid[0] // size) * -(-grid[1] // size)
    for keep in range(windows, n + 1):
        plan = matcher.match(shown(x, grid), keep)
        plan.check()
        assert torch.equal(plan.keep, plan.keep.sort(-1).values)
        for i in range(3):
            home = plan.keep[i][plan.dst[i]].tolist()
            assert home == by_hand(x[i], grid, size, keep), keep


def test_flat_windows_merge_before_edges() -> None:
    x = torch.randn(1, 36, 8, generator=torch.Generator().manual_seed(1))
    flat = torch.tensor([3, 4, 5, 9, 10, 11, 15, 16, 17])  # the upper right window
    x[:, flat] = x[:, :1] + 0.01 * x[:, flat]
    plan = MergeWindows(3).match(shown(x, (6, 6)), 36 - 8)
    assert plan.keep[0][plan.dst[0]][flat].tolist() == [3] * 9


def test_a_window_with_nan_merges_last() -> None:
    x = torch.ones(1, 16, 2)
    x[:, 0] = torch.nan
    plan = MergeWindows(2).match(shown(x, (4, 4)), 16 - 9)
    assert plan.dst[0][[0, 1, 4, 5]].tolist() == plan.dst[0][[0, 1, 4, 5]].unique().tolist()


def test_windows_are_the_tokens_of_a_coarser_grid() -> None:
    x = torch.randn(2, 7 * 5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    matcher = MergeWindows(2)
    all_windows = matcher.match(shown(x, (7, 5)), 4 * 3)
    sums = all_windows.sum(x) / all_windows.sum(torch.ones(2, 35))[..., None]
    for keep in range(1, 12):
        coarser = matcher.match(shown(sums, (4, 3)), keep)
        plan = matcher.match(shown(x, (7, 5)), keep)
        plan.check()
        assert torch.equal(plan.dst, all_windows.then(coarser).dst)
        assert torch.equal(plan.keep, all_windows.then(coarser).keep)


def test_without_a_grid() -> None:
    with pytest.raises(MissingEvidenceError, match="grid"):
        MergeWindows(3).match(shown(torch.randn(1, 36, 2), None), 20)
