"""The mean by mass: a token that stands for three counts three times."""

from __future__ import annotations

from dataclasses import dataclass

from tokenzoo.evidence import Evidence
from tokenzoo.parts import Merger
from tokenzoo.token_map import TokenMap, take
from tokenzoo.tokens import Tokens, full_precision


@dataclass(frozen=True)
class WeightedMean(Merger):
    """ToMe's merge: sum of mass * x over sum of mass."""

    conserves = frozenset({"mass", "sum"})

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        """Apply the plan; the weighted sum of the features is conserved where nothing is dropped."""
        del evidence
        total = plan.sum(tokens.mass)  # [b, m]
        # Weights first: a token that nobody joins has weight mass / mass = 1 and is unchanged to the bit.
        weight = tokens.mass / take(total, plan.targets)
        x = full_precision(tokens.x)
        merged = plan.sum(x * weight.to(x.dtype)[..., None])  # [b, m, c]
        return plan.carry(tokens, merged.to(tokens.x.dtype), total)
