"""Tokens with high scores, those next to them, and tokens with high scores of another kind (HiPrune)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenzoo._core.kinds import Share
from tokenzoo._core.sorting import choose, descending, first_of, places
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer, Selector, token_scores
from tokenzoo.token_map import take


@dataclass(frozen=True)
class Anchored(Selector):
    """Keep anchors, the tokens next to them in the grid, and the best of the others.

    Anchors are the round(share * k / 5) tokens of the pool with the highest scores. With the up to four
    tokens next to each they are about that share of k: fewer where anchors are neighbours. The rest of the
    k are the tokens with the highest scores of the other scorer.

    Args:
        anchors: chooses the anchors.
        others: chooses the rest.
        share: of k for anchors and neighbours.
    """

    anchors: Scorer
    others: Scorer
    share: Share = 0.1

    def __post_init__(self) -> None:
        self.require("grid")

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens: anchors, then neighbours, then others."""
        rows, columns = evidence.grid
        count = round(self.share * k / 5)
        anchors = take(
            pool, descending(take(token_scores(self.anchors, evidence), pool))[:, :count]
        )
        anchor = torch.zeros_like(evidence.x[..., 0], dtype=torch.bool).scatter(1, anchors, True)
        near = next_to(anchor.reshape(-1, rows, columns)).flatten(1)
        # Anchors first, then tokens next to one, then all others.
        kind = 2 - take(anchor.long() + (anchor | near).long(), pool)  # [b, p]
        scores = take(token_scores(self.others, evidence), pool)
        bad = (~scores.isfinite()).long()
        return choose(pool, first_of(k, bad, kind, places(descending(scores))))


def next_to(marked: Tensor) -> Tensor:
    """Return which cells of `marked [b, rows, columns]`, bool, have a marked one next to them."""
    wide = F.pad(marked, (1, 1, 1, 1))
    inner = slice(1, -1)
    beside = wide[:, inner, :-2] | wide[:, inner, 2:]
    return beside | wide[:, :-2, inner] | wide[:, 2:, inner]
