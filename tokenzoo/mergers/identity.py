"""Pruning: kept tokens are unchanged, the others are dropped."""

from __future__ import annotations

from dataclasses import dataclass

from tokenzoo.evidence import Evidence
from tokenzoo.parts import Merger
from tokenzoo.token_map import TokenMap
from tokenzoo.tokens import Tokens


@dataclass(frozen=True)
class Identity(Merger):
    """Keep the features of the kept tokens; ignore the others."""

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        """Gather the kept tokens."""
        del evidence
        return plan.carry(tokens, plan.of_kept(tokens.x))
