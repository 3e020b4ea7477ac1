"""The highest scores of every frame, each frame with a quota of its own (VidCom2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.kinds import Positive
from tokenzoo._core.precision import comparable
from tokenzoo._core.sorting import choose, descending, ordered, place_in_group, places
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer, Selector, token_scores
from tokenzoo.temporal.segmenter import by_frame
from tokenzoo.token_map import take


@dataclass(frozen=True)
class PerFrame(Selector):
    """Keep the highest-scoring tokens of every frame, in proportion to weights of the frames.

    The j-th token of a frame of weight w has the rank (j - 1/2) / w; the first k ranks are kept (Webster's
    rounding: exact, and no frame gives more than it has).

    Args:
        scorer: a high score means keep.
        frames: frames with a high mean score keep more: the weight of frame f of F is
            1 + softmax(mean score / temperature)_f - 1 / F; None: all keep as many.
        temperature: of the softmax.
    """

    scorer: Scorer
    frames: Scorer | None = None
    temperature: Positive = 0.01

    def __post_init__(self) -> None:
        self.require("frames")

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens, those that come first in their frames first."""
        frame = pool // (evidence.x.shape[1] // evidence.frames)
        scores = take(token_scores(self.scorer, evidence), pool)  # [b, p]
        turn = place_in_group(frame, places(descending(scores)))
        rank = (turn + 0.5) / take(self.weights(evidence), frame)
        # Tokens that are not finite come last in the clip, not only in their frame.
        rank = torch.where(scores.isfinite(), rank, torch.inf)
        return choose(pool, ordered(rank)[:, :k])

    def weights(self, evidence: Evidence) -> Tensor:
        """Return the weights of the frames, `[b, f]` float64, with the mean 1."""
        b, frames = evidence.x.shape[0], evidence.frames
        if self.frames is None:
            return torch.ones(b, frames, dtype=torch.float64, device=evidence.x.device)
        scores = by_frame(token_scores(self.frames, evidence), frames).double()  # [b, f, n]
        known = scores.isfinite()
        mean = scores.where(known, 0).sum(-1) / known.sum(-1).clamp_min(1)
        # Equal scores have equal weights: differences in rounding are cut before they are enlarged.
        return 1 + (comparable(mean) / self.temperature).softmax(-1) - 1 / frames
