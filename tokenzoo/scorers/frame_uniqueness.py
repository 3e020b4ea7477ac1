"""How unlike the other frames of its segment a frame is (LongVU)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.precision import comparable
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer
from tokenzoo.scorers.temporal_change import FIRST
from tokenzoo.temporal import FrameWindows, Segmenter
from tokenzoo.temporal.segmenter import by_frame, firsts, lengths
from tokenzoo.tokens import full_precision, unit


@dataclass(frozen=True)
class FrameUniqueness(Scorer):
    """One minus the mean cosine of a frame with all frames of its segment, itself included.

    A frame is one vector, all its tokens in a row; its tokens have equal scores. The middle frame of a
    segment scores higher than all others.

    Args:
        segments: the segments.
        layer: the layer whose features are compared; None: those of the site.
    """

    segments: Segmenter = FrameWindows(16)
    layer: int | str | None = None

    def __post_init__(self) -> None:
        self.require("frames", "x" if self.layer is None else f"x@{self.layer}")

    def score(self, evidence: Evidence) -> Tensor:
        """Return scores `[b, n]`, from 0 to 2, and 3 for middle frames; NaN for tokens not finite."""
        x = by_frame(full_precision(evidence.at(self.layer).x), evidence.frames)  # [b, f, n, c]
        known = x.isfinite().all(-1)
        frames = unit(x.where(known[..., None], 0).flatten(2))  # [b, f, n * c]
        segment = self.segments.segment(evidence)
        same = segment[:, None] == segment[..., None]  # [b, f, f]
        size = lengths(segment)
        cosine = (frames @ frames.mT).clamp(-1, 1).where(same, 0)
        change = 1 - comparable(cosine.sum(-1) / size)  # [b, f]
        middle = firsts(segment) + size // 2
        frame = torch.arange(size.shape[1], device=x.device)
        change = torch.where(middle == frame, FIRST, change)
        return change[..., None].where(known, torch.nan).flatten(1)
