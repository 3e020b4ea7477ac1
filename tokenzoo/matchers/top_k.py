"""The tokens with the highest scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tokenzoo._core.sorting import choose, descending
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer, Selector, token_scores
from tokenzoo.token_map import take


@dataclass(frozen=True)
class TopK(Selector):
    """Keep the k tokens of the pool with the highest scores.

    Args:
        scorer: a high score means keep.
        rest: order of the rest: "position" in the pool, or "score", descending (VisPruner's next step
            splits that list by parity).
        kept: order of the chosen tokens, with the same values.
    """

    scorer: Scorer
    rest: Literal["position", "score"] = "position"
    kept: Literal["position", "score"] = "score"

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose the k tokens with the highest scores."""
        order = descending(take(token_scores(self.scorer, evidence), pool))  # [b, p]
        chosen = order[:, :k] if self.kept == "score" else order[:, :k].sort(-1).values
        if self.rest == "score":
            return take(pool, chosen), take(pool, order[:, k:])
        return choose(pool, chosen)
