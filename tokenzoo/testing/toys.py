"""Parts that break one promise each: what the laws have to catch, lest they hold of anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenzoo.evidence import Evidence
from tokenzoo.interfaces import Matcher, Merger, Part, Scorer
from tokenzoo.plan import Plan, take
from tokenzoo.tokens import Tokens, norm


def _first(evidence: Evidence, keep: int) -> Plan:
    """Keep the first tokens; the last of them takes in the others."""
    b, n = evidence.x.shape[:2]
    index = torch.arange(n, device=evidence.x.device).expand(b, n)
    return Plan(index[:, :keep], index.clamp_max(keep - 1))


class _FirstTokens(Matcher):
    def fewest(self, tokens: int, prefix: int = 0) -> int:
        """One."""
        return 1


@dataclass(frozen=True)
class OneTooMany(_FirstTokens):
    """Keeps one token more than it was asked for, where there is one more."""

    def match(self, evidence: Evidence, keep: int) -> Plan:
        """Miscount."""
        return _first(evidence, min(keep + 1, evidence.x.shape[1]))


@dataclass(frozen=True)
class KeepsByValue(_FirstTokens):
    """Keeps as many tokens as the data seem to ask for."""

    def match(self, evidence: Evidence, keep: int) -> Plan:
        """Count the tokens with a positive sum instead."""
        return _first(evidence, max(1, int((evidence.x[0].sum(-1) > 0).sum())))


@dataclass(frozen=True)
class TwoPlaces(_FirstTokens):
    """Counts every token in the first output, the kept ones too."""

    def match(self, evidence: Evidence, keep: int) -> Plan:
        """Contradict itself: keep says one thing, dst another."""
        plan = _first(evidence, keep)
        return Plan(plan.keep, torch.zeros_like(plan.dst))


@dataclass(frozen=True)
class FalseHold(_FirstTokens):
    """Says that it holds all tokens, and merges some of them."""

    def match(self, evidence: Evidence, keep: int) -> Plan:
        """Hold nothing of what it says."""
        plan = _first(evidence, keep)
        return replace(plan, held=torch.ones_like(plan.keep, dtype=torch.bool))


class _SlipPlan(Plan):
    """A plan whose composition is off by one."""

    def then(self, later: Plan) -> Plan:
        """Forget where the first token went."""
        both = super().then(later)
        return Plan(both.keep, both.dst.roll(1, -1))


@dataclass(frozen=True)
class Slips(_FirstTokens):
    """Gives plans that do not compose."""

    def match(self, evidence: Evidence, keep: int) -> Plan:
        """Be right alone, and wrong with others."""
        plan = _first(evidence, keep)
        return _SlipPlan(plan.keep, plan.dst)


@dataclass(frozen=True)
class Boaster(_FirstTokens):
    """Says that one token can stay, and halves at most."""

    def match(self, evidence: Evidence, keep: int) -> Plan:
        """Stop halfway."""
        return _first(evidence, max(keep, (evidence.x.shape[1] + 1) // 2))


@dataclass(frozen=True)
class LosesMass(Merger):
    """Forgets the mass of what joins."""

    def merge(self, tokens: Tokens, plan: Plan, evidence: Evidence) -> Tokens:
        """Take features and masses of the kept tokens only."""
        return Tokens(plan.of_kept(tokens.x), plan.of_kept(tokens.mass))


@dataclass(frozen=True)
class ClaimsSum(Merger):
    """Takes the kept tokens' features, and says that the sum is conserved."""

    conserves = frozenset({"mass", "sum"})

    def merge(self, tokens: Tokens, plan: Plan, evidence: Evidence) -> Tokens:
        """Forget the features of what joins."""
        return plan.carry(tokens, plan.of_kept(tokens.x))


@dataclass(frozen=True)
class Blurs(Merger):
    """Mixes a little of all tokens into each."""

    def merge(self, tokens: Tokens, plan: Plan, evidence: Evidence) -> Tokens:
        """Touch every token, also those that nobody joins."""
        x = plan.of_kept(tokens.x)
        return plan.carry(tokens, 0.9 * x + 0.1 * tokens.x.mean(1, keepdim=True))


@dataclass(frozen=True)
class Detaches(Merger):
    """Cuts the gradients of what it merges."""

    def merge(self, tokens: Tokens, plan: Plan, evidence: Evidence) -> Tokens:
        """Take a mean without gradients."""
        x = tokens.x.detach()
        count = take(plan.sum(torch.ones_like(x[..., 0])), plan.dst.clamp_min(0))
        return plan.carry(tokens, plan.sum(x / count.clamp_min(1)[..., None]))


@dataclass(frozen=True)
class BatchMean(Scorer):
    """Measures tokens by their distance to the mean of the whole batch."""

    def score(self, evidence: Evidence) -> Tensor:
        """Look at the other images."""
        return norm(evidence.x - evidence.x.mean((0, 1)))


@dataclass(frozen=True)
class Dice(Scorer):
    """Throws dice."""

    def score(self, evidence: Evidence) -> Tensor:
        """Ask torch's generator."""
        return torch.rand(evidence.x.shape[:2], device=evidence.x.device)


@dataclass(frozen=True)
class RaisesOnNaN(Scorer):
    """Insists on finite features."""

    def score(self, evidence: Evidence) -> Tensor:
        """Raise where a model in half precision would go on."""
        if not bool(evidence.x.isfinite().all()):
            raise ValueError("the features are not finite")
        return norm(evidence.x)


@dataclass(frozen=True)
class NeedsTwo(Scorer):
    """Compares each image with its second token."""

    def score(self, evidence: Evidence) -> Tensor:
        """Fail on an image of one token."""
        return norm(evidence.x - evidence.x[:, [1]])


@dataclass(frozen=True)
class LikesNaN(Scorer):
    """Gives the highest score to what is not finite."""

    def score(self, evidence: Evidence) -> Tensor:
        """Hide NaN behind a large number."""
        return norm(evidence.x).nan_to_num(nan=1e9, posinf=1e9)


@dataclass(frozen=True)
class SpreadsNaN(Merger):
    """Multiplies what must not count by zero."""

    def merge(self, tokens: Tokens, plan: Plan, evidence: Evidence) -> Tokens:
        """Sum over all tokens with weights of 0 and 1: 0 * NaN is NaN."""
        slots = torch.arange(plan.kept, device=plan.dst.device)
        member = (plan.dst[:, None] == slots[:, None]).to(tokens.x.dtype)  # [b, m, n]
        return plan.carry(tokens, member @ tokens.x)


@dataclass(frozen=True)
class Undeclared(Scorer):
    """Reads the CLS attention, and does not say so."""

    def score(self, evidence: Evidence) -> Tensor:
        """Read what `needs` does not name."""
        return evidence.cls_attention.mean(1)


BROKEN: Mapping[str, tuple[Part, ...]] = {
    "exact_budget": (OneTooMany(), KeepsByValue()),
    "protected_untouched": (Blurs(),),
    "held_untouched": (FalseHold(),),
    "conserved": (LosesMass(), ClaimsSum()),
    "plan_total": (TwoPlaces(),),
    "plans_compose": (Slips(),),
    "batch_independent": (BatchMean(),),
    "deterministic": (Dice(),),
    "gradients": (Detaches(),),
    "degenerate": (RaisesOnNaN(), NeedsTwo()),
    "nan_lowest": (LikesNaN(), SpreadsNaN()),
    "needs_honest": (Undeclared(),),
    "fewest_honest": (Boaster(),),
}
"""For each law, parts that break it."""
