"""HoliTom's merge: a centre, averaged over its frames, is blended with the mean of what joins it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenzoo._core.kinds import Share
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Merger
from tokenzoo.token_map import TokenMap, take
from tokenzoo.tokens import Tokens, full_precision


@dataclass(frozen=True)
class CentreBlend(Merger):
    """Blend the mean of a token's own place with the mean of its other members (HoliTom).

    The members of an output at the place of its representative, in whatever frame, are its centre:
    y = weight * mean of the centre + (1 - weight) * mean of the other members. A token that no other place
    joins is the mean of its centre; a new token is the mean of its members.

    Args:
        weight: of the centre.
    """

    weight: Share = 0.6

    needs = frozenset({"frames"})

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        """Blend; regardless of mass."""
        x = full_precision(tokens.x)
        slot, places = plan.targets, plan.tokens // evidence.frames
        index = torch.arange(plan.tokens, device=slot.device)
        new = take(plan.keep, slot) < 0
        centre = (index % places == take(plan.sources, slot) % places) & ~new
        one = x.new_ones(x.shape[:2])
        own, other = plan.sum(one * centre), plan.sum(one * ~centre)  # [b, m] members
        share = torch.where(own == 0, 0.0, torch.where(other == 0, 1.0, self.weight))
        share = share.to(x.dtype)
        weight = torch.where(
            centre,
            take(share / own.clamp_min(1), slot),
            take((1 - share) / other.clamp_min(1), slot),
        )
        return plan.carry(tokens, plan.sum(x * weight[..., None]).to(tokens.x.dtype))
