"""Windows in which most tokens do not change (HoliTom's global temporal segmentation)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from tokenzoo._core.kinds import Count, Range
from tokenzoo._core.precision import comparable
from tokenzoo._core.sorting import first_highest
from tokenzoo.evidence import Evidence
from tokenzoo.temporal.segmenter import Segmenter, by_frame, to_previous


@dataclass(frozen=True)
class StaticWindows(Segmenter):
    """Cut so that as many tokens as possible repeat the frame before (HoliTom).

    A place is static in a window if its cosine with the frame before is above the threshold all along.
    A window of w frames with s static places saves (w - 1) * s tokens; dynamic programming finds the
    windows that save most. Of equally good ones the shorter last window is taken.

    Args:
        threshold: cosines above it are static.
        longest: frames of the longest window.
    """

    threshold: Annotated[float, Range(-1, 2)] = 0.8
    longest: Count = 1024

    def segment(self, evidence: Evidence) -> Tensor:
        """Return the segments `[b, f]`."""
        gain = self.gains(evidence)  # [b, first frame, last frame]
        b, f, _ = gain.shape
        best = [gain.new_zeros(b)]  # of the first i frames
        starts: list[Tensor] = []  # of the window that ends with frame i
        for last in range(f):
            # The shortest window first: one frame, which saves nothing.
            firsts = range(last, max(-1, last - self.longest), -1)
            saved = torch.stack([best[i] + gain[:, i, last] for i in firsts], 1)
            choice = first_highest(saved)
            best.append(saved.gather(1, choice[:, None])[:, 0])
            starts.append(last - choice)
        start = torch.stack(starts, 1)  # [b, f]
        return self._numbered(start)

    def gains(self, evidence: Evidence) -> Tensor:
        """Return how many tokens each window saves, `[b, first frame, last frame]`; int64."""
        frames = evidence.frames
        x = by_frame(evidence.x, frames)  # [b, f, n, c]
        moved = ~(comparable(to_previous(x)) > self.threshold)  # [b, f - 1, n]; NaN moves
        frame = torch.arange(frames, device=x.device)
        since = (frame[1:, None] * moved).cummax(1).values  # the last frame that differs
        since = torch.cat([torch.zeros_like(x[:, :1, :, 0], dtype=torch.int64), since], 1)
        still = torch.stack([(since <= first).sum(-1) for first in range(frames)], 1)
        return still * (frame - frame[:, None]).clamp_min(0)

    @staticmethod
    def _numbered(start: Tensor) -> Tensor:
        """Follow the windows from the last frame to the first; return their numbers `[b, f]`."""
        begins: list[Tensor] = []
        at = start[:, -1:]  # the first frame of the window that has this one
        for frame in range(start.shape[1] - 1, -1, -1):
            begins.append(at == frame)
            at = torch.where(at == frame, start.gather(1, (at - 1).clamp_min(0)), at)
        return torch.cat(begins[::-1], 1).long().cumsum(1) - 1
