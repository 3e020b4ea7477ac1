"""The scores before the elbow of their sorted curve; their number depends on the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.precision import comparable
from tokenzoo._core.sorting import descending, first_highest
from tokenzoo.evidence import Evidence
from tokenzoo.matchers.above import Highest
from tokenzoo.parts import Scorer, token_scores
from tokenzoo.token_map import take


@dataclass(frozen=True)
class Elbow(Highest):
    """Keep the tokens before the elbow of the sorted scores, at least one and at most k.

    The scores of the pool in descending order are a curve; its elbow is the first of the points that lie
    deepest below the straight line from the first to the last one. A curve that is nowhere below that line
    has none: then k stay.

    Args:
        scorer: a high score means keep.
    """

    scorer: Scorer

    def lengths(self, evidence: Evidence, pool: Tensor, k: int) -> Tensor:
        """Return the number of tokens before the elbow: `[b]`."""
        scores = comparable(take(token_scores(self.scorer, evidence), pool))
        known = scores.isfinite()
        curve = take(scores.where(known, 0), descending(scores))  # [b, p], the unknown ones last
        last = known.sum(-1, keepdim=True).sub(1).clamp_min(0)  # [b, 1]
        at = torch.arange(curve.shape[1], device=pool.device)
        high, low = curve[:, :1], take(curve, last)
        line = high + (low - high) * at / last.clamp_min(1)
        depth = comparable(line - curve).masked_fill(at > last, 0)  # [b, p]
        # A depth of a rounding error is none.
        elbow = first_highest(depth)
        deep = depth.amax(-1) > 1e-6 * (high - low)[:, 0]
        return torch.where(deep, elbow, k).clamp(min(1, k), k)
