"""Where the tokens that do not stay go: away, or to the nearest that stays."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Assigner, PairScorer


@dataclass(frozen=True)
class Drop(Assigner):
    """Nobody joins anybody: the rest is gone."""

    def assign(
        self, evidence: Evidence, kept: Tensor, rest: Tensor, groups: tuple[int, ...]
    ) -> Tensor:
        """Send all of `rest` away (-1)."""
        del evidence, kept, groups
        return rest.new_full(rest.shape, -1)


@dataclass(frozen=True)
class Nearest(Assigner):
    """Each of the rest joins the kept token with which it has the highest pair score.

    Args:
        pairs: a high score means merge.
        group: which of the selector's groups receives, as an index (VisionZip: -1, the contextual
            tokens); None: all of them.
    """

    pairs: PairScorer
    group: int | None = None

    def assign(
        self, evidence: Evidence, kept: Tensor, rest: Tensor, groups: tuple[int, ...]
    ) -> Tensor:
        """Give each of the rest the slot of its nearest receiver; dropped if the group is empty."""
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
