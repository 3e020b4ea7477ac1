"""New tokens that are sums of many; kept tokens stay unchanged."""

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

    The scores are not normalised: those of an attention add up to less than 1, and the new token is shorter
    by that factor (EViT, PruMerge).

    Args:
        scorer: the weights; None: the plain mean (TRIM).
    """

    scorer: Scorer | None = None

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        """Merge; kept tokens are unchanged."""
        x = full_precision(tokens.x)
        weight = None if self.scorer is None else weights(self.scorer, evidence)
        merged = plan.of_kept(x) + new_tokens(x, plan, weight)
        return plan.carry(tokens, merged.to(tokens.x.dtype))


def weights(scorer: Scorer, evidence: Evidence) -> Tensor:
    """Return the scores as weights `[b, n]`, without gradients unless the scorer learns."""
    scores = token_scores(scorer, evidence)
    return scores if scorer.differentiable else scores.detach()


def new_tokens(x: Tensor, plan: TokenMap, weight: Tensor | None) -> Tensor:
    """Return weighted sums of `x [b, n, c]` for new outputs, zeros for the others: `[b, m, c]`.

    `weights [b, n]`; None: the mean.
    """
    slot = plan.targets
    joins = (plan.dst >= 0) & (take(plan.keep, slot) < 0)  # [b, n]
    if weight is None:
        count = plan.sum(x.new_ones(x.shape[:2]))
        weight = 1 / take(count, slot).clamp_min(1)
    # Selected, not multiplied by 0: an infinite feature would become NaN.
    return plan.sum((x * weight.to(x.dtype)[..., None]).where(joins[..., None], 0))
