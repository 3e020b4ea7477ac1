"""Cuts where a running similarity to the first frame of a segment falls (EarlyTom's segmentation)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from tokenzoo._core.kinds import Range, Share
from tokenzoo._core.precision import comparable
from tokenzoo.evidence import Evidence
from tokenzoo.temporal.segmenter import Segmenter, by_frame
from tokenzoo.tokens import unit


@dataclass(frozen=True)
class StreamingCuts(Segmenter):
    """Compare each frame with the first of its segment; cut where a running mean is below a threshold.

    With c the mean cosine of a frame with the first one of its segment, e becomes memory * c + (1 - memory)
    * e, from e = 1 on. If e < threshold, or the segment is full, a new one begins with this frame.

    Args:
        threshold: on e.
        longest: a segment has fewer frames than this (EarlyTom's M).
        memory: weight of the newest frame.
    """

    threshold: Annotated[float, Range(-1, 2)] = 0.65
    longest: Annotated[int, Range(2)] = 6
    memory: Share = 0.9

    def __post_init__(self) -> None:
        self.require("frames", "x")

    def segment(self, evidence: Evidence) -> Tensor:
        """Return the segments `[b, f]`."""
        vectors = frame_units(evidence.x, evidence.frames)
        return streaming(vectors, self.threshold, self.longest, self.memory)


def streaming(vectors: Tensor, threshold: float, longest: int, memory: float) -> Tensor:
    """Return the segments `[b, f]` of frames whose inner products are their cosines.

    Args:
        vectors: `[b, f, d]`.
        threshold: as in `StreamingCuts`.
        longest: as in `StreamingCuts`.
        memory: as in `StreamingCuts`.
    """
    cosine = comparable(vectors @ vectors.mT)  # [b, f, f]
    b, f, _ = cosine.shape
    start = torch.zeros(b, 1, dtype=torch.int64, device=vectors.device)
    running = torch.ones(b, 1, dtype=cosine.dtype, device=vectors.device)
    begins = [torch.zeros_like(start)]
    for frame in range(1, f):
        alike = cosine[:, frame].gather(1, start)
        running = memory * alike + (1 - memory) * running
        # Not `running < threshold`: a NaN cuts.
        cut = ~(running >= threshold) | (frame - start + 1 >= longest)
        begins.append(cut.long())
        start = torch.where(cut, frame, start)
        running = torch.where(cut, 1.0, running)
    return torch.cat(begins, 1).cumsum(1)


def frame_units(x: Tensor, frames: int) -> Tensor:
    """Return vectors `[b, f, n * c]` whose inner products are mean cosines of the tokens at all places.

    Args:
        x: features of all tokens, `[b, f * n, c]`.
        frames: f.
    """
    tokens = by_frame(unit(x), frames)
    return (tokens / tokens.shape[2] ** 0.5).flatten(2)
