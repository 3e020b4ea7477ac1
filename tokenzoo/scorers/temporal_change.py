"""How much a token differs from that at the same place in an earlier frame (EVS, LongVU)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenzoo._core.precision import comparable
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer
from tokenzoo.temporal import Segmenter
from tokenzoo.temporal.segmenter import by_frame, firsts
from tokenzoo.tokens import unit

FIRST = 3.0
"""Score of the first frame of a segment; of all others, 2 is the highest."""


@dataclass(frozen=True)
class TemporalChange(Scorer):
    """One minus the cosine with the token at the same place in another frame.

    The first frame of a segment has nothing to compare with, and scores higher than all others.

    Args:
        to: "previous": the frame before; "first": the first frame of the segment.
        segments: the segments; None: the clip is one.
    """

    to: Literal["previous", "first"] = "previous"
    segments: Segmenter | None = None

    def __post_init__(self) -> None:
        self.require("frames", "x")

    def score(self, evidence: Evidence) -> Tensor:
        """Return scores `[b, n]`, from 0 to 2, and 3 for first frames.

        A token that is compared with one that is not finite has the score 2: it is new.
        """
        frames = evidence.frames
        x = by_frame(unit(evidence.x), frames)  # [b, f, n, c]
        segment = x.new_zeros(x.shape[:2], dtype=torch.int64)
        if self.segments is not None:
            segment = self.segments.segment(evidence)
        first, frame = firsts(segment), torch.arange(frames, device=x.device)
        other = first if self.to == "first" else (frame - 1).clamp_min(0).expand_as(first)
        rows = torch.arange(x.shape[0], device=x.device)[:, None]
        earlier = x[rows, other]
        known = earlier.isfinite().all(-1)
        cosine = comparable((x * earlier.where(known[..., None], 0)).sum(-1))  # [b, f, n]
        change = (1 - cosine.clamp(-1, 1)).where(known | ~x.isfinite().all(-1), 2.0)
        is_first = (first == frame)[..., None] & x.isfinite().all(-1)
        return torch.where(is_first, FIRST, change).flatten(1)
