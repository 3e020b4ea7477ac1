"""The plain mean of the current tokens, regardless of mass."""

from __future__ import annotations

from dataclasses import dataclass

from tokenzoo.evidence import Evidence
from tokenzoo.parts import Merger
from tokenzoo.token_map import TokenMap, take
from tokenzoo.tokens import Tokens, full_precision


@dataclass(frozen=True)
class Mean(Merger):
    """Average the members of each output, regardless of mass (VScan)."""

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        """Average the members of each output."""
        del evidence
        x = full_precision(tokens.x)
        count = plan.sum(x.new_ones(x.shape[:2]))  # [b, m]
        weight = 1 / take(count, plan.targets).clamp_min(1)
        return plan.carry(tokens, plan.sum(x * weight[..., None]).to(tokens.x.dtype))
