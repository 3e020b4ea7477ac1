"""Segments of a fixed number of frames (LongVU, VidToMe)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.kinds import Count
from tokenzoo.evidence import Evidence
from tokenzoo.temporal.segmenter import Segmenter


@dataclass(frozen=True)
class FrameWindows(Segmenter):
    """Cut after every `size` frames; the last segment can be shorter.

    Args:
        size: frames of a segment.
    """

    size: Count = 8

    def segment(self, evidence: Evidence) -> Tensor:
        """Return the segments `[b, f]`, which depend on the number of frames alone."""
        frame = torch.arange(evidence.frames, device=evidence.x.device)
        return (frame // self.size).expand(evidence.x.shape[0], -1)
