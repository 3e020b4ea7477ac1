"""PruMerge's merge: a kept token takes in a little of all that is like it, kept or not."""

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
    """x of a kept token + the sum of score * x over the k tokens that are most like it.

    Neighbours are looked for among all tokens but itself, with their features before any merge; one token
    can be a neighbour of many. So the plan, which says who stays and who joins whom, does not show them.
    New tokens are sums of score * x over their members, as in `Fused`.

    Args:
        pairs: a high score means alike.
        scorer: the weights, not normalised.
        k: number of neighbours; fewer if there are fewer.
    """

    pairs: PairScorer
    scorer: Scorer
    k: Count = 32

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        """Apply the plan; tokens with NaN or infinite features are nobody's neighbours.

        Protected tokens are unchanged, and so are all where none has to go.
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
        """Which tokens are neighbours of each kept one, 0 or 1: `[b, m, n]`; none of a new token."""
        b, n = evidence.x.shape[:2]
        every = torch.arange(n, device=keep.device).expand(b, n)
        k = min(self.k + 1, n)
        _, index = self.pairs.score(evidence).at(keep.clamp_min(0), every).nearest(k)
        own = index == keep[..., None]
        # A token is not its own neighbour. Where others come before it, the last of them is one too many.
        last = torch.arange(k, device=keep.device) == k - 1
        left = own | (last & ~own.any(-1, keepdim=True)) | (keep < 0)[..., None]
        return torch.zeros_like(keep)[..., None].repeat(1, 1, n).scatter(2, index, (~left).long())
