"""Salient tokens of every frame, and density peaks of the anchor frames of segments (FastVID)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from tokenzoo._core.kinds import Count, Share, Words
from tokenzoo._core.sorting import descending, first_highest, ordered, place_in_group, places
from tokenzoo._core.validation import floor_share
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer, token_scores
from tokenzoo.temporal.anchors import Anchors, context_of_frame, similarities
from tokenzoo.temporal.clip_matcher import ClipMatcher
from tokenzoo.temporal.density import density_peaks, squared_distances
from tokenzoo.temporal.segmenter import Segmenter, by_frame
from tokenzoo.temporal.set_counts import in_proportion
from tokenzoo.token_map import TokenMap, take


@dataclass(frozen=True)
class SalientAnchors(ClipMatcher):
    """Keep the highest-scoring tokens of each frame, and let the others join targets in anchor frames.

    Targets are the density peaks (DPC-KNN) among the other tokens of an anchor frame; anchor frames are the
    last one of a segment and every p-th before it. A token joins the most similar target of its
    segment, or of its frame if each frame of the segment is an anchor. Salient tokens are held: none joins.

    Exactly `keep` tokens stay: a share of them targets, divided over the anchor frames in proportion to the
    frames that each stands for, and the others salient, as many in each frame. With `retained` the counts
    are those of the authors' code, whose divisions lose a few tokens: `keep` is then the maximum.

    Args:
        salient: a high score means keep.
        segments: the segments.
        context: share of the tokens that are targets, rounded down.
        every: p, the distance of anchor frames.
        k: nearest tokens that the density looks at, the token itself counted.
        retained: the share of each frame's tokens in the authors' own counts; None: exactly `keep`.
    """

    salient: Scorer
    segments: Segmenter
    context: Share = 0.4
    every: Count = 4
    k: Count = 4
    retained: Annotated[Share | None, Words("a fraction in [0, 1], or None")] = None

    @property
    def ragged(self) -> bool:
        """Whether the count depends on the clip."""
        return self.retained is not None

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        """Keep exactly `keep` tokens, or at most as many, in order of position."""
        b, n = evidence.x.shape[:2]
        anchors = Anchors.of(self.segments.segment(evidence), self.every)
        size = n // evidence.frames
        base, salient_count, target_count = self._counts(anchors, size, keep)
        index = torch.arange(n, device=evidence.x.device).expand(b, n)
        frame = index // size
        score = token_scores(self.salient, evidence)
        rank = place_in_group(frame, places(descending(score)))
        salient = rank < take(salient_count, frame)
        peak = self._peaks(evidence, salient).to(score.dtype)
        rank = place_in_group(2 * frame + salient.long(), places(descending(peak)))
        chosen = salient | (rank < take(target_count, frame))
        order = ordered(torch.where(chosen, index, n + index))
        kept, ends = order[:, :keep], chosen.sum(1, keepdim=True).clamp_max(keep)
        real = index[:, :keep] < ends
        targets = real & ~take(salient.long(), kept).bool()
        similarity = similarities(evidence.x, kept, targets, anchors, anchors.alone(base))
        best = first_highest(similarity)
        dst = best.where(similarity.gather(2, best[..., None])[..., 0].isfinite(), -1)
        slot = places(order)
        dst = torch.where(salient, -1, dst).where(~chosen | (slot >= keep), slot)
        if not self.ragged:
            return TokenMap(kept, dst, held=~targets)
        dst = dst.where((slot < keep) | ~chosen, -1)
        return TokenMap(kept.masked_fill(~real, -1), dst, ends[:, 0], held=real & ~targets)

    def _counts(self, anchors: Anchors, size: int, keep: int) -> tuple[int | None, Tensor, Tensor]:
        """Return the targets of a frame as the authors count; salient tokens and targets `[b, f]`."""
        if self.retained is not None:
            base = context_of_frame(self.retained, self.context, size)
            salient = torch.full_like(anchors.segment, int(size * self.retained) - base)
            targets = base * anchors.frames // anchors.anchors
            targets = targets.where(anchors.is_anchor, 0).minimum(size - salient)
            return base, salient, targets
        weight = (anchors.frames / anchors.anchors).where(anchors.is_anchor, 0)
        room = anchors.is_anchor.sum(1, keepdim=True) * size
        wanted = room.clamp_max(floor_share(self.context, keep))
        targets = in_proportion(weight, anchors.is_anchor * size, wanted, size)
        salient = in_proportion(torch.ones_like(weight), size - targets, keep - wanted, size)
        return None, salient, targets

    def _peaks(self, evidence: Evidence, salient: Tensor) -> Tensor:
        """Return the density peaks among the tokens of each frame that are not salient, `[b, n]`."""
        square = squared_distances(by_frame(evidence.x, evidence.frames).flatten(0, 1))
        others = ~salient.view(square.shape[:2])
        same = others[:, None] & others[..., None]
        peak = density_peaks(square, same, self.k, ties=self.retained is None)
        return peak.view(salient.shape)
