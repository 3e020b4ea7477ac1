"""Kept tokens as they are, and new ones that stand for many."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenzoo.evidence import Evidence
from tokenzoo.parts import Merger, Scorer, token_scores
from tokenzoo.token_map import TokenMap, take
from tokenzoo.tokens import Tokens, full_precision


@dataclass(frozen=True)
class Fused(Merger):
    """A new token is the sum of score * x over its members, or their plain mean.

    The scores are not normalised: they add up to less than 1 where they are those of an attention, and the
    new token is as short (EViT, PruMerge).

    Args:
        scorer: the weights; None: the plain mean (TRIM).
    """

    scorer: Scorer | None = None

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        """Apply the plan; a kept token is unchanged, whatever joins it."""
        x = full_precision(tokens.x)
        weight = None if self.scorer is None else weights(self.scorer, evidence)
        merged = plan.of_kept(x) + new_tokens(x, plan, weight)
        return plan.carry(tokens, merged.to(tokens.x.dtype))


def weights(scorer: Scorer, evidence: Evidence) -> Tensor:
    """The scores as weights `[b, n]`, without gradients unless the scorer learns."""
    scores = token_scores(scorer, evidence)
    return scores if scorer.differentiable else scores.detach()


def new_tokens(x: Tensor, plan: TokenMap, weight: Tensor | None) -> Tensor:
    """Weighted sums of `x [b, n, c]` in the outputs that are new, zeros in the others: `[b, m, c]`.

    Without weights `[b, n]` it is the mean.
    """
    slot = plan.targets
    joins = (plan.dst >= 0) & (take(plan.keep, slot) < 0)  # [b, n]
    if weight is None:
        count = plan.sum(x.new_ones(x.shape[:2]))
        weight = 1 / take(count, slot).clamp_min(1)
    # Not x * 0 for the others: an infinite feature would become NaN.
    return plan.sum((x * weight.to(x.dtype)[..., None]).where(joins[..., None], 0))
