"""Selection methods: a selector chooses tokens, an assigner merges or drops the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence
from tokenzoo.matchers.assigners import Drop
from tokenzoo.matchers.fuse import Fuse
from tokenzoo.parts import Assigner, Matcher, Selector
from tokenzoo.token_map import TokenMap


@dataclass(frozen=True)
class SelectAssign(Matcher):
    """Choose tokens with a selector; merge the rest into them, or drop it, with an assigner.

    Args:
        stay: chooses the tokens that stay.
        join: assigns the others.
        order: of the outputs: "position"; "groups", the selector's groups one after another, each by
            position (VisionZip: dominant, then contextual); "selected", as the selector gave them.
            New tokens come last.
    """

    stay: Selector
    join: Assigner
    order: Literal["position", "groups", "selected"] = "position"

    def __post_init__(self) -> None:
        if self.ragged and not isinstance(self.join, Drop | Fuse):
            raise BadArgumentError(
                f"{self.join!r} after {self.stay!r}, which keeps a data-dependent count: the "
                "others can only be dropped or fused: pass Drop() or Fuse()"
            )

    @property
    def ragged(self) -> bool:
        """Whether the count depends on the data; `keep` is then the maximum."""
        return self.stay.ragged

    def min_tokens(self, tokens: int, prefix: int = 0) -> int:
        """Return 1 plus the number of new tokens of the assigner."""
        del prefix
        return min(tokens, 1 + self.join.extra)

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        """Keep exactly `keep` tokens."""
        b, n = evidence.x.shape[:2]
        if keep == n and self.join.extra and not self.ragged:
            # Nothing is removed, so no new token takes the place of an old one.
            return TokenMap.identity(b, n, device=evidence.x.device)
        k = keep - self.join.extra
        pool = torch.arange(n, device=evidence.x.device).expand(b, n)
        kept, rest = self.stay.select(evidence, pool, k)
        groups = self.stay.groups(k)
        lengths = self.stay.lengths(evidence, pool, k)
        if lengths is not None:
            plan = self._ragged(evidence, kept, rest, lengths)
            if self.order == "selected":
                return plan
            place = torch.arange(n, n + keep, device=pool.device)
            return plan.reordered(torch.where(plan.keep < 0, place, plan.keep))
        by_position = self.order == "position"
        in_place = by_position and isinstance(self.join, Drop | Fuse)
        if in_place:  # both ignore the order of the kept tokens: sorting first saves a reordering
            kept = kept.sort(dim=-1).values
        slots = self.join.assign(evidence, kept, rest, groups)
        new = kept.new_full((b, self.join.extra), -1)
        plan = TokenMap.from_slots(torch.cat([kept, new], 1), rest, slots, n)
        if in_place or self.order == "selected":
            return plan
        if by_position:
            return plan.by_position()
        group = [kept.new_full((b, size), i) for i, size in enumerate(groups)]
        rank = torch.cat([*group, new + 1 + len(groups)], 1)
        return plan.reordered(rank * (n + 1) + plan.keep)

    def _ragged(self, evidence: Evidence, kept: Tensor, rest: Tensor, lengths: Tensor) -> TokenMap:
        """Keep the first `lengths [b]` tokens, followed by the new ones and padding."""
        k, extra = kept.shape[1], self.join.extra
        order = torch.cat([kept, rest], 1)  # [b, n]
        place = torch.arange(order.shape[1], device=order.device)
        end = lengths[:, None]
        slots = self.join.assign(evidence, kept, order, (k,))
        slots = torch.where(slots >= k, slots - k + end, slots)
        slots = torch.where(place < end, place, slots)
        keep = torch.cat([kept, kept.new_full((len(kept), extra), -1)], 1)
        keep = keep.masked_fill(torch.arange(k + extra, device=keep.device) >= end, -1)
        return TokenMap(keep, torch.empty_like(order).scatter(1, order, slots), lengths + extra)
