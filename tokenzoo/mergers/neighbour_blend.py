"""EarlyTom's merge of two neighbours, weighted by how alike each is to the next."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenzoo.evidence import Evidence
from tokenzoo.parts import Merger
from tokenzoo.token_map import TokenMap, take
from tokenzoo.tokens import Tokens, full_precision, unit


@dataclass(frozen=True)
class NeighbourBlend(Merger):
    """Blend a kept token i and the next one, where that joins it: y = w * x_i + (1 - w) * x_(i+1).

    With s_i the cosine of i and i + 1, w = s_i / (s_i + s_(i+1)); negative cosines count as 0, and w is 1
    where there is no token after i + 1. Other groups become the mean of their members. Regardless of mass.
    """

    def __post_init__(self) -> None:
        self.require("x")

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        """Blend; masses add up."""
        x = full_precision(tokens.x)
        n = plan.tokens
        with torch.no_grad():
            vectors = unit(evidence.x)
            alike = (vectors[:, 1:] * vectors[:, :-1]).sum(-1).clamp_min(0).nan_to_num()
            alike = torch.nn.functional.pad(alike, (0, 2)).to(x.dtype)  # [b, n + 1]
            here, after = alike[:, :n], alike[:, 1:]
            w = torch.where(here + after > 0, here / (here + after).clamp_min(1e-12), 1.0)
            index = torch.arange(n, device=x.device).expand_as(plan.dst)
            lead = take(plan.keep, plan.targets)  # of each token, whom it joins
            count = take(plan.sum(torch.ones_like(here)), plan.targets)
            pair = (count == 2) & ((lead == index) | (lead == index - 1))
            second = take(w, (index - 1).clamp_min(0))
            whole = take(plan.sum(pair.to(x.dtype)), plan.targets) == 2
            blend = torch.where(lead == index, w, 1 - second)
            weight = torch.where(whole, blend, 1 / count)
        # Selected, not multiplied by 0: a token that is not finite would spread.
        part = torch.where(weight[..., None] == 0, 0, x * weight[..., None])
        return plan.carry(tokens, plan.sum(part).to(tokens.x.dtype))
