"""EarlyTom's choice: attended tokens of the ends of a segment, tokens from everywhere of its middle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.sorting import choose, descending, ordered, place_in_group, places, run_of
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer, Selector, token_scores
from tokenzoo.temporal.segmenter import Segmenter, firsts, lengths
from tokenzoo.token_map import take


@dataclass(frozen=True)
class EndsAndMiddles(Selector):
    """Of the first and last frame of a segment keep the highest scores; of frames between them, in windows.

    All frames keep as many tokens, the earlier ones one more where that is needed. A frame in the middle of
    a segment of three or more is cut into as many contiguous windows as tokens are kept, in raster order,
    the longer ones first, and the highest score of each window stays: attention sinks take one place each.

    Args:
        scorer: a high score means keep.
        segments: the segments.
    """

    scorer: Scorer
    segments: Segmenter

    def __post_init__(self) -> None:
        self.require("frames")

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens; tokens that are not finite come last in the clip."""
        frames = evidence.frames
        n = evidence.x.shape[1] // frames
        frame, spot = pool // n, pool % n
        segment = self.segments.segment(evidence)  # [b, f]
        at = torch.arange(frames, device=pool.device)
        begin = firsts(segment)
        middle = (at > begin) & (at < begin + lengths(segment) - 1)  # [b, f]
        scores = take(token_scores(self.scorer, evidence), pool)  # [b, p]
        count = k // frames + (frame < k % frames).long()  # [b, p]
        window = run_of(spot, n, count)
        inside = take(middle.long(), frame) == 1
        # A middle frame ranks the best of every window before the second of any.
        group = frame * (n + 1) + torch.where(inside, window, n)
        order = places(descending(scores))
        turn = place_in_group(group, order)  # [b, p]
        key = torch.where(inside, turn, 0) * pool.shape[1] + order
        rank = place_in_group(frame, places(ordered(key)))
        # Tokens that are not finite leave their places to others.
        later = torch.where(scores.isfinite(), (rank >= count).long(), 2)
        return choose(pool, ordered(later * n + rank)[:, :k])
