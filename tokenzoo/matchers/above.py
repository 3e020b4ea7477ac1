"""All tokens whose score is above a threshold; their number depends on the data (LongVU)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from tokenzoo._core.kinds import Range
from tokenzoo._core.precision import comparable
from tokenzoo._core.sorting import choose, descending
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer, Selector, token_scores
from tokenzoo.token_map import take


@dataclass(frozen=True)
class Highest(Selector):
    """The base of selectors of the highest scores whose number depends on the data: see `lengths`.

    Args:
        scorer: a high score means keep.
    """

    scorer: Scorer

    @property
    def ragged(self) -> bool:
        """True: the count depends on the data."""
        return True

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens: the highest first."""
        scores = take(token_scores(self.scorer, evidence), pool)
        return choose(pool, descending(scores)[:, :k])


@dataclass(frozen=True)
class Above(Highest):
    """Keep the tokens whose score is above a threshold, at least one and at most k, the highest first.

    Args:
        scorer: a high score means keep.
        threshold: the highest score of a token that is not kept.
    """

    threshold: Annotated[float, Range()] = 0.0

    def lengths(self, evidence: Evidence, pool: Tensor, k: int) -> Tensor:
        """Return the number of tokens above the threshold: `[b]`."""
        scores = comparable(take(token_scores(self.scorer, evidence), pool))
        above = (scores > self.threshold) & scores.isfinite()
        return above.sum(-1).clamp(min(1, k), k)
