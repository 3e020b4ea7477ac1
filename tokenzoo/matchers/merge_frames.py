"""The most similar neighbouring frames merge, down to a fixed memory (MovieChat)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.precision import comparable, precise
from tokenzoo._core.sorting import first_highest, ordered, places
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Matcher
from tokenzoo.temporal.segmenter import by_frame, firsts, to_previous
from tokenzoo.token_map import TokenMap


@dataclass(frozen=True)
class MergeFrames(Matcher):
    """Merge the two most similar neighbouring frames, place by place, until few enough are left.

    The similarity of two frames is the mean cosine of the tokens at the same place, of merged frames
    that of their means. Where `keep` is no whole number of frames, the last merge is of some places
    only, those with the highest cosines. Fewer tokens than a frame has are evenly spaced places; the
    others join the nearest of them in raster order.
    """

    def __post_init__(self) -> None:
        self.require("frames", "x")

    def min_tokens(self, tokens: int, prefix: int = 0) -> int:
        """Return 1."""
        del tokens, prefix
        return 1

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        """Keep exactly `keep` tokens, in order of position."""
        x = by_frame(precise(evidence.x), evidence.frames)  # [b, f, n, c]
        b, frames, n, _ = x.shape
        left = -(-keep // n)  # frames of which some places stay
        x = x.where(x.isfinite().all(-1, keepdim=True), 0)  # similar to none
        count = torch.ones(b, frames, dtype=x.dtype, device=x.device)
        group = torch.arange(frames, device=x.device).expand(b, frames)
        for _ in range(frames - left):
            cosine = to_previous(x).mean(-1)  # [b, frames - 1]
            x, count, group = _merged(x, count, group, first_highest(comparable(cosine)))
        excess = left * n - keep
        begins = firsts(group)  # the first frame of each frame's group
        place = torch.arange(n, device=x.device)
        lead = begins[..., None] * n + place  # [b, f, n]
        if excess and left == 1:
            kept = ((2 * torch.arange(keep, device=x.device) + 1) * n) // (2 * keep)
            lead = lead - place + kept[(kept[:, None] - place).abs().argmin(0)]
        elif excess:
            lead = _partly(x, group, lead, excess)
        lead = lead.flatten(1)
        index = torch.arange(frames * n, device=x.device).expand_as(lead)
        stays = ordered((lead != index).long())[:, :keep]
        slot = places(ordered((lead != index).long()))
        return TokenMap(stays, slot.gather(1, lead), complete=True)


def _merged(x: Tensor, count: Tensor, group: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the frames `at [b]` and at + 1 of m frames.

    Args:
        x: `[b, m, n, c]` means.
        count: `[b, m]` frames in each.
        group: `[b, f]` of which of the m each frame is part.
        at: the first of the two.
    """
    b, m = count.shape
    rows = torch.arange(b, device=x.device)
    here, after = count[rows, at], count[rows, at + 1]
    mean = x[rows, at] * (here / (here + after))[:, None, None]
    mean = mean + x[rows, at + 1] * (after / (here + after))[:, None, None]
    index = torch.arange(m - 1, device=x.device)
    source = index + (index > at[:, None]).long()  # [b, m - 1]
    own = index == at[:, None]
    x = torch.where(own[..., None, None], mean[:, None], x[rows[:, None], source])
    count = torch.where(own, (here + after)[:, None], count.gather(1, source))
    return x, count, group - (group > at[:, None]).long()


def _partly(x: Tensor, group: Tensor, lead: Tensor, excess: int) -> Tensor:
    """Merge the `excess` most similar places of the two most similar frames; return the new leads."""
    cosine = comparable(to_previous(x))  # [b, m - 1, n]
    rows = torch.arange(x.shape[0], device=x.device)
    at = first_highest(comparable(cosine.mean(-1)))
    chosen = places(ordered(cosine[rows, at], descending=True)) < excess  # [b, n]
    first = first_highest((group == at[:, None]).long())  # the first frame of the group
    joins = (group == at[:, None] + 1)[..., None] & chosen[:, None]
    place = torch.arange(lead.shape[2], device=x.device)
    return torch.where(joins, first[:, None, None] * lead.shape[2] + place, lead)
