"""Pruning: the kept tokens stay as they are, the others are gone."""

from __future__ import annotations

from dataclasses import dataclass

from tokenzoo.evidence import Evidence
from tokenzoo.parts import Merger
from tokenzoo.token_map import TokenMap
from tokenzoo.tokens import Tokens


@dataclass(frozen=True)
class Identity(Merger):
    """Take the features of the kept tokens and nothing of the others."""

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        """Apply the plan; the features of a kept token are unchanged."""
        del evidence
        return plan.carry(tokens, plan.of_kept(tokens.x))
