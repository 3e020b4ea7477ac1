"""The most similar neighbouring frames merge, down to a fixed memory (MovieChat)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.precision import comparable, precise
from tokenzoo._core.sorting import first_highest, ordered, places
from tokenzoo.evidence import Evidence
from tokenzoo.temporal.clip_matcher import ClipMatcher
from tokenzoo.temporal.segmenter import by_frame
from tokenzoo.token_map import TokenMap
from tokenzoo.tokens import unit


@dataclass(frozen=True)
class MergeFrames(ClipMatcher):
    """Merge the two most similar neighbouring frames, place by place, until few enough are left.

    The similarity of two frames is the mean cosine of the tokens at the same place, of merged frames
    that of their means. Where `keep` is no whole number of frames, the last merge is of some places
    only, those with the highest cosines. Fewer tokens than a frame has are evenly spaced places; the
    others join the nearest of them in raster order.
    """

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        """Keep exactly `keep` tokens, in order of position."""
        x = by_frame(precise(evidence.x), evidence.frames)  # [b, f, n, c]
        b, frames, n, _ = x.shape
        # A token that is not finite is similar to none.
        memory = Memory.of(x.where(x.isfinite().all(-1, keepdim=True), 0))
        left = -(-keep // n)  # frames of which some places stay
        for _ in range(frames - left):
            memory.merge()
        excess = left * n - keep
        place = torch.arange(n, device=x.device)
        lead = (memory.lead * n)[..., None] + place  # [b, f, n]
        if excess and left == 1:
            kept = ((2 * torch.arange(keep, device=x.device) + 1) * n) // (2 * keep)
            lead = lead - place + kept[(kept[:, None] - place).abs().argmin(0)]
        elif excess:
            at, after, cosine = memory.nearest()
            chosen = places(ordered(cosine, descending=True)) < excess  # [b, n]
            joins = (memory.lead == after)[..., None] & chosen[:, None]
            lead = torch.where(joins, (at * n)[..., None] + place, lead)
        lead = lead.flatten(1)
        index = torch.arange(frames * n, device=x.device).expand(b, -1)
        order = ordered((lead != index).long())
        return TokenMap(order[:, :keep], places(order).gather(1, lead), complete=True)


class Memory:
    """Frames that merge one after another; a merged one is where the first of its frames was.

    Attributes:
        x: `[b, f, n, c]`, means of merged frames.
        lead: `[b, f]`, the first of the frames with which each has merged.
    """

    def __init__(self, x: Tensor) -> None:
        b, f = x.shape[:2]
        self.x = x
        self.rows = torch.arange(b, device=x.device)
        self.lead = torch.arange(f, device=x.device).expand(b, f)
        self.count = torch.ones(b, f, dtype=x.dtype, device=x.device)
        # Of each frame the one before and after it; f: there is none.
        index = torch.arange(f + 1, device=x.device).expand(b, f + 1)
        self.after = (index + 1).clamp_max(f)
        self.before = (index - 1).where(index > 0, f)
        pairs = (unit(x[:, 1:]) * unit(x[:, :-1])).sum(-1).mean(-1)  # [b, f - 1]
        none = torch.full_like(x[:, :1, 0, 0], -torch.inf)
        self.cosine = torch.cat([pairs, none, none], 1)  # [b, f + 1], with the frame after

    @classmethod
    def of(cls, x: Tensor) -> Memory:
        """Return the frames `x [b, f, n, c]`, of which none has merged."""
        return cls(x.clone())

    def merge(self) -> None:
        """Merge the two most similar neighbours."""
        at = first_highest(comparable(self.cosine))[:, None]  # [b, 1]
        gone = self.after.gather(1, at)
        share = self.count.gather(1, at), self.count.gather(1, gone)
        total = share[0] + share[1]
        mean = self._frame(at) * (share[0] / total)[..., None]
        mean = mean + self._frame(gone) * (share[1] / total)[..., None]
        self.x[self.rows, at[:, 0]] = mean
        self.count = self.count.scatter(1, at, total)
        self.lead = torch.where(self.lead == gone, at, self.lead)
        after, before = self.after.gather(1, gone), self.before.gather(1, at)
        self.after = self.after.scatter(1, at, after)
        self.before = self.before.scatter(1, after, at)
        cosine = self.cosine.scatter(1, gone, -torch.inf)
        cosine = cosine.scatter(1, at, self._similarity(at, after))
        self.cosine = cosine.scatter(1, before, self._similarity(before, at))

    def nearest(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the two most similar neighbours `[b, 1]`, and the cosines of their places `[b, n]`."""
        at = first_highest(comparable(self.cosine))[:, None]
        after = self.after.gather(1, at)
        return at, after, (unit(self._frame(at)) * unit(self._frame(after))).sum(-1)

    def _frame(self, at: Tensor) -> Tensor:
        """Return the tokens of one frame, `at [b, 1]`: `[b, n, c]`."""
        return self.x[self.rows, at[:, 0].clamp_max(self.x.shape[1] - 1)]

    def _similarity(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the mean cosine of two frames, `[b, 1]`; -inf where one of them does not exist."""
        cosine = (unit(self._frame(one)) * unit(self._frame(other))).sum(-1).mean(-1, keepdim=True)
        none = torch.maximum(one, other) == self.x.shape[1]
        return cosine.masked_fill(none, -torch.inf)
