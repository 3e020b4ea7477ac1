"""Tokens that no merge may touch, as a partition of static sizes.

A partition needs no mask, no -inf, no product with an infinity (which is NaN for a similarity of 0), and no
count that depends on data.
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

    Of T tokens, min(floor(share * T), T - 2r) are held if r are to be merged; at least 0 (the paper's
    formula is negative for r > T / 2). A site that must halve holds none.

    Args:
        scorer: a high score means protect.
        share: EvoPrune's CTR, a fraction of the tokens of the site.
        sticky: hold the tokens held at an earlier site first, as many as fit. The paper says both that
            critical tokens are preserved in later stages and that their number shrinks.
    """

    scorer: Scorer
    share: Share = 0.25
    sticky: bool = False

    def count(self, tokens: int, merges: int) -> int:
        """Return the number of tokens that are held if `merges` of `tokens` must merge."""
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
