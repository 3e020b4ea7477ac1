"""HoliTom's merge inside the language model: one token after another is averaged in."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenzoo._core.sorting import place_in_group
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Merger
from tokenzoo.token_map import TokenMap, take
from tokenzoo.tokens import Tokens, full_precision


@dataclass(frozen=True)
class RunningMean(Merger):
    """Average the kept token with each token that joins it, one after another, in order of position.

    Each step is y = (y + x_j) / 2. So the last of r tokens has the weight 1/2, the one before 1/4, and the
    kept token 1/2^r. A new token begins with the first of its members.
    """

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        """Average in closed form, without a loop over tokens; regardless of mass."""
        del evidence
        x = full_precision(tokens.x)
        slot = plan.targets
        index = torch.arange(plan.tokens, device=slot.device).expand_as(slot)
        own = take(plan.keep, slot) == index
        begins = take(plan.keep, slot) < 0
        # The kept token comes first among its members; dropped tokens are a group of their own.
        group = torch.where(plan.dst < 0, plan.kept, slot)
        turn = place_in_group(2 * group + (~own).long(), index)  # among the others, from 0
        count = plan.sum((~own).to(x.dtype))
        left = take(count, slot) - turn - (begins & (turn == 0)).long()
        weight = torch.exp2(-torch.where(own, take(count, slot), left))
        return plan.carry(tokens, plan.sum(x * weight[..., None]).to(tokens.x.dtype))
