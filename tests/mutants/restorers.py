"""Restorers that break one promise each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenzoo.parts import Restorer
from tokenzoo.token_map import TokenMap, take


@dataclass(frozen=True)
class MovesTheLeft(Restorer):
    """Sets the tokens that are left back to what entered the block."""

    def restore(
        self, left: Tensor, x: Tensor, plan: TokenMap, prepared: tuple[Tensor, ...]
    ) -> Tensor:
        return x.clone()


@dataclass(frozen=True)
class ForgetsTheDropped(Restorer):
    """Brings dropped tokens back as zeros."""

    def restore(
        self, left: Tensor, x: Tensor, plan: TokenMap, prepared: tuple[Tensor, ...]
    ) -> Tensor:
        return plan.unmerge(left)


@dataclass(frozen=True)
class MovesByTheBatch(Restorer):
    """Moves dropped tokens by what the tokens of all images have changed by."""

    def restore(
        self, left: Tensor, x: Tensor, plan: TokenMap, prepared: tuple[Tensor, ...]
    ) -> Tensor:
        return plan.unmerge(left, x + (left - take(x, plan.keep)).mean((0, 1)))
