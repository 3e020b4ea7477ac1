"""Anchor frames of segments, and who joins the tokens that are kept there (FastVID)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.precision import comparable
from tokenzoo.temporal.segmenter import firsts, lengths
from tokenzoo.tokens import unit


@dataclass(frozen=True)
class Anchors:
    """The anchor frames of segments: the last one, and every p-th frame before it.

    Attributes:
        segment: `[b, f]`, the segment of each frame.
        is_anchor: `[b, f]` bool.
        frames: `[b, f]`, the frames m of each frame's segment.
        anchors: `[b, f]`, its anchor frames, m / p rounded up.
    """

    segment: Tensor
    is_anchor: Tensor
    frames: Tensor
    anchors: Tensor

    @classmethod
    def of(cls, segment: Tensor, every: int) -> Anchors:
        """Find the anchor frames of segments `[b, f]`, every p-th from their end."""
        size = lengths(segment)
        frame = torch.arange(segment.shape[1], device=segment.device)
        to_end = firsts(segment) + size - 1 - frame
        return cls(segment, to_end % every == 0, size, (size + every - 1) // every)

    def alone(self, context: int | None) -> Tensor:
        """Return whether the anchors of a frame's segment take in tokens of their own frame only, `[b, f]`.

        So do all where each frame is an anchor. The authors' code tells this by the counts: an anchor that
        has no more than the `context` tokens of one frame is alone.
        """
        more = self.frames - self.anchors
        return more == 0 if context is None else context * more < self.anchors


def similarities(
    x: Tensor, keep: Tensor, targets: Tensor, anchors: Anchors, alone: Tensor
) -> Tensor:
    """Return the cosines of all tokens with those targets that they can join: `[b, n, m]`.

    -inf elsewhere: for other outputs, targets of other segments, and tokens that are not finite.

    Args:
        x: features `[b, n, c]`.
        keep: `[b, m]` kept tokens; the value where it is no target does not matter.
        targets: `[b, m]` bool, which of them others can join.
        anchors: of the clip.
        alone: `[b, f]` bool, see `Anchors.alone`.
    """
    vectors = unit(x)
    b, n, _ = vectors.shape
    keep = keep.clamp_min(0)
    rows = torch.arange(b, device=x.device)[:, None]
    cosine = comparable(vectors @ vectors[rows, keep].mT)  # [b, n, m]
    per_frame = n // anchors.segment.shape[1]
    frame = torch.arange(n, device=x.device) // per_frame
    own = keep // per_frame  # [b, m] frame of each target
    here = frame[:, None] == own[:, None]  # [b, n, m]
    near = anchors.segment[:, frame, None] == anchors.segment.gather(1, own)[:, None]
    joins = (here | (near & ~alone.gather(1, own)[:, None])) & targets[:, None]
    return cosine.masked_fill(~joins | cosine.isnan(), -torch.inf)


def members(similarity: Tensor, own: Tensor, frames: int) -> Tensor:
    """Return which tokens are merged into which output: `[b, n, m]` bool, one in every anchor frame.

    Args:
        similarity: see `similarities`.
        own: `[b, m]` the frame of each output.
        frames: f.
    """
    b, n, m = similarity.shape
    index = own[:, None].expand(b, n, m)
    highest = similarity.new_full((b, n, frames), -torch.inf)
    highest = highest.scatter_reduce(2, index, similarity, "amax").gather(2, index)
    best = (similarity == highest) & similarity.isfinite()
    # Of equally similar ones, the first.
    slot = torch.arange(m, device=own.device).expand(b, n, m)
    first = torch.full((b, n, frames), m, device=own.device)
    first = first.scatter_reduce(2, index, slot.where(best, m), "amin").gather(2, index)
    return best & (slot == first)


def context_of_frame(retained: float, context: float, size: int) -> int:
    """Return how many of the tokens that stay of a frame of that size the authors make targets."""
    return int(int(size * retained) * context)
