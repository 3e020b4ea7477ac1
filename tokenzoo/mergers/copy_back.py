"""Tokens that come back with the features of the token that they are part of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenzoo.parts import Restorer
from tokenzoo.token_map import TokenMap


@dataclass(frozen=True)
class CopyBack(Restorer):
    """Copy each token that is left to all tokens that it stands for.

    A dropped token has the features with which it entered the block that dropped it.
    """

    def restore(
        self, left: Tensor, x: Tensor, plan: TokenMap, prepared: tuple[Tensor, ...]
    ) -> Tensor:
        """Return the copies."""
        del prepared
        return plan.unmerge(left, x.to(left.dtype))
