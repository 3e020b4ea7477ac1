"""Segmenters: where a clip is cut into runs of similar frames; and what is known of such a run."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from tokenzoo._core.precision import precise
from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence, Layer
from tokenzoo.parts import Part
from tokenzoo.tokens import unit


class Segmenter(Part, ABC):
    """Cuts a clip of f frames into segments of consecutive frames."""

    needs = frozenset({"frames"})

    @abstractmethod
    def segment(self, evidence: Evidence) -> Tensor:
        """Return the number of the segment of each frame: `[b, f]`, int64, from 0, in steps of 0 or 1."""


def by_frame(values: Tensor, frames: int) -> Tensor:
    """View values of all tokens `[b, f * n, ...]` frame by frame: `[b, f, n, ...]`.

    Raises:
        BadArgumentError: the number of frames does not divide that of the tokens.
    """
    b, tokens = values.shape[:2]
    if tokens % frames:
        raise BadArgumentError(
            f"{tokens} tokens in {frames} frames; every frame must have as many tokens as the others"
        )
    return values.reshape(b, frames, tokens // frames, *values.shape[2:])


def frame_vectors(evidence: Evidence, layer: Layer | None = None) -> Tensor:
    """Return the mean of the finite tokens of each frame, `[b, f, c]`.

    `layer` names the layer whose features are used; None: those of the site.
    """
    x = by_frame(precise(evidence.at(layer).x), evidence.frames)  # [b, f, n, c]
    known = x.isfinite().all(-1, keepdim=True)
    count = known.sum(2).clamp_min(1)
    return x.where(known, 0).sum(2) / count


def to_previous(vectors: Tensor) -> Tensor:
    """Return the cosine of `vectors [b, f, ..., c]` with those of the frame before: `[b, f - 1, ...]`."""
    vectors = unit(vectors)
    return (vectors[:, 1:] * vectors[:, :-1]).sum(-1)


def numbered(cuts: Tensor) -> Tensor:
    """Return the segments `[b, f]` of a clip with `cuts [b, f - 1]`, bools, between its frames."""
    first = cuts.new_zeros(cuts.shape[0], 1)
    return torch.cat([first, cuts], 1).long().cumsum(1)


def lengths(segment: Tensor) -> Tensor:
    """Return the number of frames of each frame's segment, `[b, f]`."""
    count = torch.zeros_like(segment).scatter_add(1, segment, torch.ones_like(segment))
    return count.gather(1, segment)


def firsts(segment: Tensor) -> Tensor:
    """Return the first frame of each frame's segment, `[b, f]`."""
    at = torch.arange(segment.shape[1], device=segment.device).expand_as(segment)
    starts = segment.diff(dim=1, prepend=segment[:, :1] - 1) != 0
    return at.where(starts, 0).cummax(1).values
