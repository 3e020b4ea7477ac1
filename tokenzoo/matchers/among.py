"""A selector and an assigner restricted to the first share of a pool: SparseVLM's recycling."""

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
    """Return the size of the first share of a pool: the share rounded down, plus one."""
    return min(pool, floor_share(share, pool) + 1)


@dataclass(frozen=True)
class Among(Selector):
    """Apply another selector to the first share of the pool only.

    The pool has the order of the previous selector: after `TopK(..., rest="score")` the best come first.
    The tokens of the share that are not chosen come first in the rest, for `JoinFirst`.

    Args:
        stay: the selector. A subset has no softmax, grid or frames.
        share: of the pool, rounded down, plus one token; never fewer than are to be chosen.
    """

    stay: Selector
    share: Share = 0.3

    def __post_init__(self) -> None:
        whole = needs_of(self.stay) & {"attention", "grid", "frames"}
        if whole or self.stay.ragged:
            raise BadArgumentError(
                f"stay={self.stay!r} cannot choose among a part of the tokens: "
                f"{'its count comes from the data' if self.stay.ragged else ', '.join(sorted(whole))}, and "
                "a part of an image has none; pass a selector with a fixed count that works on a part"
            )

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens of the first share."""
        count = max(k, first_share(self.share, pool.shape[1]))
        # Ties go to the lower index.
        first = pool[:, :count].sort(-1).values
        own = torch.arange(first.shape[1], device=pool.device).expand_as(first)
        kept, left = self.stay.select(evidence.take(first), own, k)
        return take(first, kept), torch.cat([take(first, left), pool[:, count:]], 1)


@dataclass(frozen=True)
class JoinFirst(Assigner):
    """Apply another assigner to the first share of the rest; drop the others.

    After `Among(..., share)` as the last selector, these are the tokens among which it chose.

    Args:
        join: the assigner.
        share: as for `Among`: it includes the tokens that the last selector has chosen.
    """

    join: Assigner
    share: Share = 0.3

    def __post_init__(self) -> None:
        if self.join.extra:
            raise BadArgumentError(
                f"join={self.join!r} makes new tokens; pass an assigner that does not"
            )

    def assign(
        self, evidence: Evidence, kept: Tensor, rest: Tensor, groups: tuple[int, ...]
    ) -> Tensor:
        """Assign slots to the first of the rest, -1 to the others."""
        chosen = groups[-1]
        count = max(0, first_share(self.share, rest.shape[1] + chosen) - chosen)
        slots = self.join.assign(evidence, kept, rest[:, :count], groups)
        return torch.cat([slots, rest.new_full(rest[:, count:].shape, -1)], 1)
