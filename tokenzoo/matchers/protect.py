"""Tokens that no merge may touch, as a partition of static sizes.

A partition is gathered: no mask, no -inf, no product with an infinity (which is NaN where a similarity
is 0), no count that depends on data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.kinds import Share
from tokenzoo._core.sorting import descending, ordered
from tokenzoo._core.validation import floor_share
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Part, Scorer, token_scores
from tokenzoo.token_map import take


@dataclass(frozen=True)
class Protect(Part):
    """Hold the highest-scoring share of the tokens (EvoPrune's critical tokens).

    Held are min(floor(share * T), T - 2r) of T tokens where r are to be merged; never fewer than 0,
    which the paper's formula becomes for r > T / 2. Where a site must halve, nothing is held.

    Args:
        scorer: a high score is worth protecting.
        share: EvoPrune's CTR, a fraction of the tokens of the site.
        sticky: tokens held at an earlier site come first, as long as there is room. The paper says both
            that critical tokens are preserved in later stages and that their number shrinks.
    """

    scorer: Scorer
    share: Share = 0.25
    sticky: bool = False

    def count(self, tokens: int, merges: int) -> int:
        """How many of `tokens` are held where `merges` must merge."""
        return max(0, min(floor_share(self.share, tokens), tokens - 2 * merges))

    def partition(self, evidence: Evidence, merges: int) -> tuple[Tensor, Tensor]:
        """Return `(held [b, h], free [b, n - h])`, token indices, ascending."""
        b, n = evidence.x.shape[:2]
        count = self.count(n, merges)
        if count == 0:
            every = torch.arange(n, device=evidence.x.device).expand(b, n)
            return every[:, :0], every
        order = descending(token_scores(self.scorer, evidence))
        if self.sticky and evidence.held is not None:
            order = take(order, ordered((~take(evidence.held, order)).long()))
        return order[:, :count].sort(dim=-1).values, order[:, count:].sort(dim=-1).values
