"""Cuts where neighbouring frames are least similar (FastVID's dynamic segmentation)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from tokenzoo._core.kinds import Count, Range
from tokenzoo._core.precision import comparable
from tokenzoo._core.sorting import ordered, places
from tokenzoo.evidence import Evidence
from tokenzoo.temporal.segmenter import Segmenter, frame_vectors, numbered, to_previous


@dataclass(frozen=True)
class SceneCuts(Segmenter):
    """Cut at the lowest cosines of neighbouring frames, and wherever it is below a threshold.

    Args:
        least: number of segments, as long as there are frames; the threshold makes more.
        threshold: cosines below it are cuts.
        layer: the layer whose features are averaged over a frame; None: the tokens themselves.
    """

    least: Count = 8
    threshold: Annotated[float, Range(-1, 2)] = 0.9
    layer: int | str | None = None

    def __post_init__(self) -> None:
        self.require("x" if self.layer is None else f"x@{self.layer}")

    def segment(self, evidence: Evidence) -> Tensor:
        """Return the segments `[b, f]`; of equal cosines, the first is cut."""
        cosine = comparable(to_previous(frame_vectors(evidence, self.layer)))  # [b, f - 1]
        return numbered((places(ordered(cosine)) < self.least - 1) | (cosine < self.threshold))
