"""A few pivots and the tokens least similar to them (DART).

The pivots are the tokens with the highest scores, of the image and of the text after it. Each pivot in turn
takes the tokens with the lowest cosine to it that the pivots before it have not taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from tokenzoo._core.kinds import Count, Index
from tokenzoo._core.sorting import choose, descending
from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import TEXT, Evidence
from tokenzoo.parts import Scorer, Selector, needs_of, token_scores
from tokenzoo.token_map import take
from tokenzoo.tokens import unit


@dataclass(frozen=True)
class FarFromPivots(Selector):
    """Keep the pivots of the image, and for each pivot the tokens that are least similar to it.

    Each pivot takes an equal share of the other k - pivots tokens; the first pivots take the remainder, one
    token each.

    Args:
        scorer: the tokens with the highest scores are the pivots, in the image and in the text.
        pivots: tokens of the image; fewer if fewer are to be kept.
        text_pivots: tokens of the text after the image (the layer "text"); fewer if it is shorter. They
            take tokens of the image, and are not kept themselves.
        order: of the pivots: "score", those of the image before those of the text, each the highest first;
            or "set", that in which CPython's set iterates over their positions in the prompt (prefix,
            image, text), as in DART's code. It waits for the device, and cannot be compiled into one graph.
    """

    scorer: Scorer
    pivots: Count = 4
    text_pivots: Index = 0
    order: Literal["score", "set"] = "score"

    def __post_init__(self) -> None:
        if not self.text_pivots:
            return
        asked = needs_of(self.scorer)
        if any("@" in need for need in asked):
            raise BadArgumentError(
                f"text_pivots={self.text_pivots} with {self.scorer!r}, which reads another layer, where "
                "text tokens have no evidence; pass a scorer of this layer, or text_pivots=0"
            )
        self.require(*(f"{need}@{TEXT}" for need in {"x", *asked}))

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens: the pivots, the highest first, then the tokens that each of them takes."""
        if k == 0:
            return pool[:, :0], pool
        place = torch.arange(pool.shape[1], device=pool.device).expand_as(pool)
        scores = take(token_scores(self.scorer, evidence), pool)  # [b, p]
        own, left = choose(place, descending(scores)[:, : min(self.pivots, k)])
        features = unit(take(evidence.x, pool))  # [b, p, c]
        pivots, positions = take(features, own), take(pool, own) + evidence.prefix
        if self.text_pivots:
            text = evidence.at(TEXT)
            best = descending(token_scores(self.scorer, text))[:, : self.text_pivots]
            pivots = torch.cat([pivots, unit(take(text.x, best))], 1)
            after = evidence.prefix + evidence.x.shape[1]
            positions = torch.cat([positions, best + after], 1)
        if self.order == "set":
            pivots = take(pivots, set_order(positions))
        # A NaN pivot has similarity 0 to all; a NaN candidate stays NaN and comes last.
        likeness = pivots.nan_to_num(0.0) @ features.mT  # [b, pivots, p]
        chosen, count = [own], likeness.shape[1]
        share, more = divmod(k - own.shape[1], count)
        for i in range(count):
            far = descending(-take(likeness[:, i], left))[:, : share + (i < more)]
            taken, left = choose(left, far)
            chosen.append(taken)
        return take(pool, torch.cat(chosen, 1)), take(pool, left)


def set_order(positions: Tensor) -> Tensor:
    """Return the indices of `positions [b, q]` in the order in which CPython iterates over a set of them.

    They are inserted in the given order, which decides collisions in the hash table.
    """
    rows = cast("list[list[int]]", positions.tolist())  # pyright: ignore[reportUnknownMemberType]
    return positions.new_tensor([[row.index(position) for position in set(row)] for row in rows])
