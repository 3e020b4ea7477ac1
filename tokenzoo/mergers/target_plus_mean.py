"""VisionZip's merge: the mean of the tokens that join a target is added to it."""

from __future__ import annotations

from dataclasses import dataclass

from tokenzoo.evidence import Evidence
from tokenzoo.parts import Merger
from tokenzoo.token_map import TokenMap, take
from tokenzoo.tokens import Tokens, full_precision


@dataclass(frozen=True)
class TargetPlusMean(Merger):
    """Add to x of each target the mean x of the tokens that join it: about twice as long as an average.

    The paper describes an average; the authors' code adds, and produced the published results.
    """

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        """Merge; a token that no other joins is unchanged."""
        del evidence
        x = full_precision(tokens.x)
        slot = plan.targets  # [b, n]
        index = slot.new_ones(slot.shape).cumsum(-1) - 1
        joins = (take(plan.keep, slot) != index) & (plan.dst >= 0)
        weight = joins.to(x.dtype)
        weight = weight / take(plan.sum(weight), slot).clamp_min(1)
        # Selected, not multiplied by 0: an infinite feature would become NaN.
        joining = (x * weight[..., None]).where(joins[..., None], 0)
        merged = plan.of_kept(x) + plan.sum(joining)
        return plan.carry(tokens, merged.to(tokens.x.dtype))
