"""An assigner that fuses the rest into one new token."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenzoo.evidence import Evidence
from tokenzoo.parts import Assigner


@dataclass(frozen=True)
class Fuse(Assigner):
    """Assign the rest to one new token after the kept ones (EViT, PruMerge, TRIM).

    The merger computes its features: `Fused`, `NeighbourSum`.
    """

    extra = 1

    def assign(
        self, evidence: Evidence, kept: Tensor, rest: Tensor, groups: tuple[int, ...]
    ) -> Tensor:
        """Return the slot after the kept ones for all of `rest`."""
        del evidence, groups
        return rest.new_full(rest.shape, kept.shape[1])
