"""Mergers that break one promise each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from tokenzoo.evidence import Evidence
from tokenzoo.parts import Merger
from tokenzoo.token_map import TokenMap, take
from tokenzoo.tokens import Tokens, full_precision


@dataclass(frozen=True)
class LosesMass(Merger):
    """Forgets the mass of what joins."""

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        return Tokens(plan.of_kept(tokens.x), plan.of_kept(tokens.mass))


@dataclass(frozen=True)
class ClaimsSum(Merger):
    """Takes the kept tokens' features, and says that the sum is conserved."""

    conserves = frozenset({"mass", "sum"})

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        return plan.carry(tokens, plan.of_kept(tokens.x))


@dataclass(frozen=True)
class Blurs(Merger):
    """Mixes a little of all tokens into each."""

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        x = plan.of_kept(tokens.x)
        return plan.carry(tokens, 0.9 * x + 0.1 * tokens.x.mean(1, keepdim=True))


@dataclass(frozen=True)
class Detaches(Merger):
    """Cuts the gradients of what it merges."""

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        x = tokens.x.detach()
        count = take(plan.sum(torch.ones_like(x[..., 0])), plan.dst.clamp_min(0))
        return plan.carry(tokens, plan.sum(x / count.clamp_min(1)[..., None]))


@dataclass(frozen=True)
class SpreadsNaN(Merger):
    """Multiplies what must not count by zero."""

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        slots = torch.arange(plan.kept, device=plan.dst.device)
        member = (plan.dst[:, None] == slots[:, None]).to(tokens.x.dtype)  # [b, m, n]
        return plan.carry(tokens, member @ tokens.x)


@dataclass(frozen=True)
class Upcasts(Merger):
    """Returns float32 whatever it was given: the next block of a model in half precision stops."""

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        return plan.carry(tokens, full_precision(plan.of_kept(tokens.x)))


@dataclass(frozen=True)
class SpendsMass(Merger):
    """Sets the masses of what is dropped to zero, in the caller's own tensor."""

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        merged = plan.carry(tokens, plan.of_kept(tokens.x))
        tokens.mass.mul_(0.5)
        return replace(merged, mass=merged.mass)
