"""Assigners: drop the rest, or merge each token into the nearest kept one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Assigner, PairScorer


@dataclass(frozen=True)
class Drop(Assigner):
    """Drop the rest."""

    def assign(
        self, evidence: Evidence, kept: Tensor, rest: Tensor, groups: tuple[int, ...]
    ) -> Tensor:
        """Return -1 for all of `rest`."""
        del evidence, kept, groups
        return rest.new_full(rest.shape, -1)


@dataclass(frozen=True)
class Nearest(Assigner):
    """Assign each of the rest to the kept token with the highest pair score.

    Args:
        pairs: a high score means merge.
        group: index of the selector's group that receives (VisionZip: -1, the contextual tokens); None:
            all groups.
    """

    pairs: PairScorer
    group: int | None = None

    def assign(
        self, evidence: Evidence, kept: Tensor, rest: Tensor, groups: tuple[int, ...]
    ) -> Tensor:
        """Return the slot of the nearest receiver; -1 if the group is empty."""
        first, size = 0, kept.shape[1]
        if self.group is not None:
            if not -len(groups) <= self.group < len(groups):
                raise BadArgumentError(
                    f"group={self.group}; the selector yields {len(groups)} groups"
                )
            index = self.group % len(groups)
            first, size = sum(groups[:index]), groups[index]
        if size == 0:
            return rest.new_full(rest.shape, -1)
        receivers = kept[:, first : first + size]
        _, best = self.pairs.score(evidence).at(rest, receivers).best()
        return best + first
