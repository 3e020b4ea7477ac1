"""FastVID's merge: every token is averaged into a target of each anchor frame of its segment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from tokenzoo._core.kinds import Count, Share, Words
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Merger
from tokenzoo.temporal.anchors import Anchors, context_of_frame, members, similarities
from tokenzoo.temporal.segmenter import Segmenter
from tokenzoo.token_map import TokenMap
from tokenzoo.tokens import Tokens, full_precision


@dataclass(frozen=True)
class AnchorBlend(Merger):
    """Blend each target with the mean of the tokens that are nearest to it among those of its anchor frame.

    A token goes into one target of every anchor frame of its segment, which the token map does not record:
    it has the nearest of them. With r tokens, the target itself counted, y = w * x + (1 - w) * mean, and
    w = max(1 / (r + 1), weight). Held outputs are unchanged. If each frame of a segment is an anchor,
    a token goes into its own frame only.

    Args:
        segments: the segments.
        every: distance of anchor frames.
        weight: beta, the least weight of a target.
        retained: as in `SalientAnchors`, whose counts tell which anchors are alone.
        context: as in `SalientAnchors`.
    """

    segments: Segmenter
    every: Count = 4
    weight: Share = 0.6
    retained: Annotated[Share | None, Words("a fraction in [0, 1], or None")] = None
    context: Share = 0.4

    def __post_init__(self) -> None:
        self.require("frames", "x")

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        """Blend; regardless of mass. Tokens that are not finite are merged into none."""
        x = full_precision(tokens.x)
        with torch.no_grad():
            joined = self._members(plan, evidence)  # [b, n, m]
        count = joined.sum(1)  # [b, m]
        weight = (1 / (count + 1)).clamp_min(self.weight).to(x.dtype)
        weight = weight.where(count > 0, 1)
        known = joined.any(2, keepdim=True)
        share = joined.to(x.dtype) * ((1 - weight) / count.clamp_min(1))[:, None]
        # Selected, not multiplied by 0: a token that is not finite would spread.
        merged = plan.of_kept(x) * weight[..., None] + share.mT @ x.where(known, 0)
        return plan.carry(tokens, merged.to(tokens.x.dtype))

    def _members(self, plan: TokenMap, evidence: Evidence) -> torch.Tensor:
        """Return which tokens are merged into which output, `[b, n, m]` bool."""
        frames = evidence.frames
        size = plan.tokens // frames
        anchors = Anchors.of(self.segments.segment(evidence), self.every)
        base = None
        if self.retained is not None:
            base = context_of_frame(self.retained, self.context, size)
        targets = plan.keep >= 0
        if plan.held is not None:
            targets = targets & ~plan.held
        similarity = similarities(evidence.x, plan.keep, targets, anchors, anchors.alone(base))
        # What is kept as it is, is merged into none.
        if plan.held is not None:
            dropped = plan.dst < 0
            stays = plan.held.gather(1, plan.targets) & ~dropped
            similarity = similarity.masked_fill(stays[..., None], -torch.inf)
        return members(similarity, plan.sources // size, frames)
