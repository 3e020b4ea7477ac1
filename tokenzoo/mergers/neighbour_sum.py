"""PruMerge's merge: a weighted sum of the nearest neighbours is added to each kept token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.kinds import Count
from tokenzoo.evidence import Evidence
from tokenzoo.mergers.fused import new_tokens, weights
from tokenzoo.parts import Merger, PairScorer, Scorer
from tokenzoo.token_map import TokenMap
from tokenzoo.tokens import Tokens, full_precision


@dataclass(frozen=True)
class NeighbourSum(Merger):
    """Add to x of each kept token the sum of score * x over its k most similar tokens.

    The neighbours are among all other tokens, with their features before the merge; one token can be a
    neighbour of many, so the token map does not record them.
    New tokens are sums of score * x over their members, as in `Fused`.

    Args:
        pairs: a high score means similar.
        scorer: the weights, not normalised.
        k: number of neighbours, at most the number of other tokens.
    """

    pairs: PairScorer
    scorer: Scorer
    k: Count = 32

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        """Merge; tokens with NaN or infinite features are no neighbours.

        Protected tokens are unchanged, and all tokens are if none is removed.
        """
        if plan.kept == plan.tokens and plan.lengths is None:
            return plan.carry(tokens, plan.of_kept(tokens.x))
        x = full_precision(tokens.x)
        weight = weights(self.scorer, evidence).to(x.dtype)
        known = (weight + x.detach().sum(-1)).isfinite()  # [b, n]
        with torch.no_grad():
            near = self._near(plan.keep, evidence)
        near = near.to(x.dtype) * weight.where(known, 0)[:, None]  # [b, m, n]
        added = near @ x.where(known[..., None], 0)
        if plan.held is not None:
            added = added.masked_fill(plan.held[..., None], 0)
        merged = plan.of_kept(x) + added
        return plan.carry(tokens, (merged + new_tokens(x, plan, weight)).to(tokens.x.dtype))

    def _near(self, keep: Tensor, evidence: Evidence) -> Tensor:
        """Return 1 where a token is a neighbour of a kept one, else 0: `[b, m, n]`; 0 for new tokens."""
        b, n = evidence.x.shape[:2]
        every = torch.arange(n, device=keep.device).expand(b, n)
        k = min(self.k + 1, n)
        _, index = self.pairs.score(evidence).at(keep.clamp_min(0), every).nearest(k)
        own = index == keep[..., None]
        # A token is not its own neighbour. If k + 1 others come before it, the last is one too many.
        last = torch.arange(k, device=keep.device) == k - 1
        left = own | (last & ~own.any(-1, keepdim=True)) | (keep < 0)[..., None]
        return torch.zeros_like(keep)[..., None].repeat(1, 1, n).scatter(2, index, (~left).long())
