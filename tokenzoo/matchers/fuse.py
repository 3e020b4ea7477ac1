"""All that does not stay becomes one new token."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenzoo.evidence import Evidence
from tokenzoo.parts import Assigner


@dataclass(frozen=True)
class Fuse(Assigner):
    """The rest joins one new token, which comes behind the kept ones (EViT, PruMerge, TRIM).

    What the new token looks like is the merger's to say: `Fused`, `NeighbourSum`.
    """

    extra = 1

    def assign(
        self, evidence: Evidence, kept: Tensor, rest: Tensor, groups: tuple[int, ...]
    ) -> Tensor:
        """Give all of `rest` the slot behind the kept ones."""
        del evidence, groups
        return rest.new_full(rest.shape, kept.shape[1])
