"""Merge whole windows of the grid, the most alike first (MustDrop)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from tokenzoo._core.kinds import Range
from tokenzoo._core.sorting import descending, ordered, places
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Matcher
from tokenzoo.token_map import TokenMap
from tokenzoo.tokens import full_precision, unit


@dataclass(frozen=True)
class MergeWindows(Matcher):
    """Make one token of each window of the grid whose tokens are most alike.

    Windows are ranked by the mean cosine of two different tokens of theirs. They merge one after the other
    into their first token until the count is reached; of the last one only as many tokens as it takes.
    Windows at the lower and right edge may be smaller. If all windows together are not enough, the windows
    are the tokens of a coarser grid, and merge in the same way.

    Args:
        size: rows and columns of a window.
    """

    size: Annotated[int, Range(2)] = 3

    def __post_init__(self) -> None:
        self.require("grid", "x")

    def min_tokens(self, tokens: int, prefix: int = 0) -> int:
        """Return 1."""
        del tokens, prefix
        return 1

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        """Merge n - keep tokens into the first of their windows."""
        return _match(evidence.x, evidence.grid, self.size, keep)


def _match(x: Tensor, grid: tuple[int, int], size: int, keep: int) -> TokenMap:
    """Merge tokens `x [b, n, c]` of a grid to `keep`."""
    rows, columns = grid
    down, across = -(-rows // size), -(-columns // size)
    if keep < down * across:
        plan = _match(x, grid, size, down * across)
        count = plan.sum(torch.ones_like(x[..., 0], dtype=torch.float32))
        means = plan.sum(full_precision(x)) / count[..., None]  # [b, w, c]
        return plan.then(_match(means, (down, across), size, keep))
    vectors = unit(x)
    b, n, c = vectors.shape
    place = torch.arange(n, device=x.device)
    row, column = place // columns, place % columns
    window = row // size * across + column // size  # [n]
    first = (row % size == 0) & (column % size == 0)
    count = vectors.new_zeros(down * across).index_add(0, window, torch.ones_like(vectors[0, :, 0]))
    sums = vectors.new_zeros(b, down * across, c).index_add(1, window, vectors)
    own = vectors.new_zeros(b, down * across).index_add(1, window, vectors.square().sum(-1))
    # The sum over all pairs of different tokens, without the pairs: |sum u|^2 less the squares.
    alike = (sums.square().sum(-1) - own) / (count * (count - 1)).clamp_min(1)  # [b, w]
    rank = places(descending(alike))
    # By the rank of their windows, and in each by place; the first of each window comes last.
    turn = torch.where(first, down * across, rank[:, window]) * n + place  # [b, n]
    gone = ordered(turn)[:, : n - keep]
    corner = row // size * size * columns + column // size * size
    return TokenMap.from_joins(gone, corner[gone], n)
