"""Tokens that come back moved as their nearest kept neighbours have moved (IPCV)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.kinds import Count
from tokenzoo._core.sorting import ordered
from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence
from tokenzoo.parts import PairScorer, Restorer
from tokenzoo.token_map import TokenMap, take
from tokenzoo.tokens import full_precision


@dataclass(frozen=True)
class NeighbourUpdate(Restorer):
    """Add to a removed token what its nearest neighbours among the tokens that are left have changed by.

    With x_i the token as it entered the block that removed it, and N(i) its k nearest tokens there of those
    that are left, x_j then and y_j now:

        y_i = x_i + mean over j in N(i) of (y_j - x_j)

    A channel that is not finite counts as unchanged.

    Args:
        pairs: which tokens are near: a high score means near. It is shown features and masses alone.
        k: how many neighbours; fewer where fewer are left.
    """

    pairs: PairScorer
    k: Count = 10

    def __post_init__(self) -> None:
        if not self.pairs.needs <= {"x", "mass"}:
            raise BadArgumentError(
                f"NeighbourUpdate({self.pairs!r}): it needs {', '.join(sorted(self.pairs.needs))}, and "
                'what enters a block shows x and mass alone: NegativeSquaredDistance("x"), Similarity("x")'
            )

    def prepare(self, x: Tensor, plan: TokenMap) -> tuple[Tensor, ...]:
        """Return the removed tokens `[b, n - m]`, and 1 where one is a neighbour: `[b, n - m, m]`."""
        b, n = plan.dst.shape
        there = torch.zeros_like(plan.dst).scatter(1, plan.sources, 1)  # [b, n]
        gone = ordered(there)[:, : n - plan.kept]  # [b, n - m]
        evidence = Evidence(x, mass=torch.ones(b, n, dtype=torch.float32, device=x.device))
        pairs = self.pairs.score(evidence).at(gone, plan.sources)
        near = pairs.nearest(self.k)[1]  # [b, n - m, k]
        none = torch.zeros(b, n - plan.kept, plan.kept, device=x.device)
        return gone, none.scatter(2, near, 1.0)

    def restore(
        self, left: Tensor, x: Tensor, plan: TokenMap, prepared: tuple[Tensor, ...]
    ) -> Tensor:
        """Return the tokens that are left as they are, and the others moved."""
        gone, near = prepared
        change = full_precision(left) - full_precision(take(x, plan.sources))  # [b, m, c]
        # What is not finite moves nobody: a product with 0 would spread it.
        change = change.where(change.isfinite(), 0)
        moved = near.to(change.dtype) @ change / min(self.k, plan.kept)  # [b, n - m, c]
        back = (full_precision(take(x, gone)) + moved).to(left.dtype)
        both, order = torch.cat([left, back], 1), torch.cat([plan.sources, gone], 1)
        place = torch.arange(order.shape[1], device=order.device).expand_as(order)
        return take(both, torch.empty_like(order).scatter(1, order, place))
