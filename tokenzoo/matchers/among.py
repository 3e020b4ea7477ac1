"""A second choice among the best of the rest, and what becomes of those: SparseVLM's recycling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.kinds import Share
from tokenzoo._core.validation import floor_share
from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Assigner, Selector, needs_of
from tokenzoo.token_map import take


def first_share(share: float, pool: int) -> int:
    """How many of a pool are its first share: the share rounded down, and one more."""
    return min(pool, floor_share(share, pool) + 1)


@dataclass(frozen=True)
class Among(Selector):
    """Another selector's choice, which sees the first share of the pool and nothing else.

    The pool comes in the order of the selector before: after `TopK(..., rest="score")` the best first.
    What that share leaves over comes first in the rest, for `JoinFirst`.

    Args:
        stay: who chooses. It sees no softmax, grid or frames: some tokens are none.
        share: of the pool, rounded down, and one token more; never fewer than are to be chosen.
    """

    stay: Selector
    share: Share = 0.3

    def __post_init__(self) -> None:
        whole = needs_of(self.stay) & {"attention", "grid", "frames"}
        if whole or self.stay.ragged:
            raise BadArgumentError(
                f"stay={self.stay!r} among some of the tokens: "
                f"{'its count comes from the data' if self.stay.ragged else ', '.join(sorted(whole))}, and "
                "a part of an image has none; pass a selector of a fixed count that looks at single tokens"
            )

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k of the first."""
        count = max(k, first_share(self.share, pool.shape[1]))
        # Of equal tokens the lower index comes first, as everywhere.
        first = pool[:, :count].sort(-1).values
        own = torch.arange(first.shape[1], device=pool.device).expand_as(first)
        kept, left = self.stay.select(evidence.take(first), own, k)
        return take(first, kept), torch.cat([take(first, left), pool[:, count:]], 1)


@dataclass(frozen=True)
class JoinFirst(Assigner):
    """The first share of those that are left joins, as another assigner says; the others are dropped.

    Behind `Among(..., share)` as the last selector these are the tokens that it chose among.

    Args:
        join: where they go.
        share: as that of `Among`: it counts what the last selector has chosen, too.
    """

    join: Assigner
    share: Share = 0.3

    def __post_init__(self) -> None:
        if self.join.extra:
            raise BadArgumentError(f"join={self.join!r} makes new tokens; pass one that makes none")

    def assign(
        self, evidence: Evidence, kept: Tensor, rest: Tensor, groups: tuple[int, ...]
    ) -> Tensor:
        """Give the first of the rest their slots; -1 to the others."""
        chosen = groups[-1]
        count = max(0, first_share(self.share, rest.shape[1] + chosen) - chosen)
        slots = self.join.assign(evidence, kept, rest[:, :count], groups)
        return torch.cat([slots, rest.new_full(rest[:, count:].shape, -1)], 1)
