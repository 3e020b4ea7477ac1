"""The highest scores of every square window (VScan), and the highest-scoring rows (FoPru)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tokenzoo._core.kinds import Count
from tokenzoo._core.precision import precise
from tokenzoo._core.sorting import choose, descending, first_of, place_in_group, places
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer, Selector, token_scores
from tokenzoo.token_map import take


@dataclass(frozen=True)
class PerWindow(Selector):
    """Keep the highest-scoring tokens of every window of the grid.

    Rows and columns that fill no whole window belong to the last one.

    Args:
        scorer: a high score means keep.
        size: rows and columns of a window.
        fill: "even": the best of every window, then the second of every window, and so on; of the last turn
            only the highest. "cap": the highest of the image, but at most ceil(k / windows) of a window, as
            long as others are left.
    """

    scorer: Scorer
    size: Count = 6
    fill: Literal["even", "cap"] = "even"

    def __post_init__(self) -> None:
        self.require("grid")

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens, those that come first in their windows first."""
        rows, columns = evidence.grid
        down, across = max(1, rows // self.size), max(1, columns // self.size)
        row = (pool // columns // self.size).clamp_max(down - 1)
        window = row * across + (pool % columns // self.size).clamp_max(across - 1)
        scores = take(token_scores(self.scorer, evidence), pool)  # [b, p]
        place = places(descending(scores))
        inside = place_in_group(window, place)
        if self.fill == "cap":
            inside = (inside >= -(-k // (down * across))).long()
        return choose(pool, first_of(k, (~scores.isfinite()).long(), inside, place))


@dataclass(frozen=True)
class WholeRows(Selector):
    """Keep the rows of the grid with the highest sums of scores, and the best tokens of a last, partial
    row.

    Args:
        scorer: a high score means keep.
    """

    scorer: Scorer

    def __post_init__(self) -> None:
        self.require("grid")

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens, row after row."""
        rows, columns = evidence.grid
        scores = take(token_scores(self.scorer, evidence), pool)  # [b, p]
        known = scores.isfinite()
        addends = precise(scores).where(known, 0)
        sums = addends.new_zeros(pool.shape[0], rows).scatter_add(1, pool // columns, addends)
        row = take(places(descending(sums)), pool // columns)
        return choose(pool, first_of(k, (~known).long(), row, places(descending(scores))))
