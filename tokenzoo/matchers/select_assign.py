"""First who stays, then where the others go: the shape of the selection methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from tokenzoo.checks import check_choice, check_kind
from tokenzoo.evidence import Evidence
from tokenzoo.interfaces import Assigner, Matcher, Selector
from tokenzoo.plan import Plan


@dataclass(frozen=True)
class SelectAssign(Matcher):
    """A selector chooses, an assigner sends the rest to the chosen, or away.

    Args:
        stay: who stays.
        join: where the others go.
        order: of the outputs: "position"; "groups", the selector's groups one after another, each by
            position (VisionZip: dominant, then contextual); "selected", as the selector gave them.
            New tokens come last.
    """

    stay: Selector
    join: Assigner
    order: Literal["position", "groups", "selected"] = "position"

    def __post_init__(self) -> None:
        check_kind("stay", self.stay, Selector)
        check_kind("join", self.join, Assigner)
        check_choice("order", self.order, "position", "groups", "selected")

    def fewest(self, tokens: int, prefix: int = 0) -> int:
        """One token, and the new ones that the assigner adds."""
        del prefix
        return min(tokens, 1 + self.join.extra)

    def match(self, evidence: Evidence, keep: int) -> Plan:
        """Keep exactly `keep` tokens."""
        b, n = evidence.x.shape[:2]
        k = keep - self.join.extra
        pool = torch.arange(n, device=evidence.x.device).expand(b, n)
        kept, rest = self.stay.select(evidence, pool, k)
        groups = self.stay.groups(k)
        slots = self.join.assign(evidence, kept, rest, groups)
        new = kept.new_full((b, self.join.extra), -1)
        plan = Plan.from_slots(torch.cat([kept, new], 1), rest, slots, n)
        if self.order == "selected":
            return plan
        if self.order == "position":
            return plan.by_position()
        group = [kept.new_full((b, size), i) for i, size in enumerate(groups)]
        rank = torch.cat([*group, new + 1 + len(groups)], 1)
        return plan.reordered(rank * (n + 1) + plan.keep)
