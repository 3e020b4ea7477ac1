"""The mean weighted by mass: a token that stands for three counts three times."""

from __future__ import annotations

from dataclasses import dataclass

from tokenzoo.evidence import Evidence
from tokenzoo.parts import Merger
from tokenzoo.token_map import TokenMap, take
from tokenzoo.tokens import Tokens, full_precision


@dataclass(frozen=True)
class WeightedMean(Merger):
    """Average the members of each output by mass: sum of mass * x over sum of mass (ToMe)."""

    conserves = frozenset({"mass", "sum"})

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        """Average by mass; the weighted sum of the features is conserved if nothing is dropped."""
        del evidence
        total = plan.sum(tokens.mass)  # [b, m]
        # Weights first: a token that no other joins has weight mass / mass = 1 and is unchanged bit
        # for bit.
        weight = tokens.mass / take(total, plan.targets)
        x = full_precision(tokens.x)
        merged = plan.sum(x * weight.to(x.dtype)[..., None])  # [b, m, c]
        return plan.carry(tokens, merged.to(tokens.x.dtype), total)
