"""Pruning whose choice can be learned: kept tokens are unchanged, and carry a gradient to their gate."""

from __future__ import annotations

from dataclasses import dataclass

from tokenzoo.evidence import Evidence
from tokenzoo.learned import Gate
from tokenzoo.parts import Merger
from tokenzoo.token_map import TokenMap, take
from tokenzoo.tokens import Tokens


@dataclass(frozen=True)
class StraightThrough(Merger):
    """Keep the features of the kept tokens; in training let the gate learn from the attention to them.

    The mass of a kept token is its count m, plus m * (p - stopped(p)) with the probability p of the
    gate: it has the value of the count. In the later blocks its logarithm is added to the logits of the
    token's key, as 0 with a gradient: p rises where the loss falls if more attention goes to the token.

    Args:
        gate: that chose the tokens.
    """

    gate: Gate

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        """Gather the kept tokens; the others are dropped."""
        kept, mass = plan.of_kept(tokens.x), plan.sum(tokens.mass)
        if evidence.training:
            p = take(self.gate.probability(evidence), plan.sources).to(mass.dtype)  # [b, m]
            mass = mass + mass * (p - p.detach())
        return plan.carry(tokens, kept, mass)
