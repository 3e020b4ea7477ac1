"""Attended and diverse tokens of every frame, and trees of similar tokens through the frames (FlashVID)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from tokenzoo._core.kinds import Count, Range, Share
from tokenzoo._core.precision import comparable, precise
from tokenzoo._core.sorting import descending, first_highest, ordered, place_in_group, places
from tokenzoo._core.validation import floor_share
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer, token_scores
from tokenzoo.temporal.clip_matcher import ClipMatcher
from tokenzoo.temporal.density import density_peaks, nearest_slots, squared_distances
from tokenzoo.temporal.segmenter import Segmenter, by_frame
from tokenzoo.temporal.set_counts import in_proportion
from tokenzoo.token_map import TokenMap, take
from tokenzoo.tokens import unit


@dataclass(frozen=True)
class TreeMerge(ClipMatcher):
    """Select tokens of each frame by score and diversity; link the others to trees, and cluster these.

    Selected are, one after another, the tokens with the highest score times distance (1 - cosine) from all
    that are selected in their frame; as many in each frame. Each of the others is linked to the most
    similar of the others in the frame before, if their cosine is above the threshold and the segment
    is the same. Linked tokens are a tree, which begins in its first frame. Of the trees that begin in
    a frame the density peaks stay (DPC-KNN), in proportion to their number, and the others join the
    nearest of them. If there would be too few trees, only the most similar tokens are linked.

    Args:
        scorer: >= 0; a high score means keep.
        segments: the segments.
        selected: share of the tokens that are selected, rounded up.
        threshold: cosines above it are linked.
        k: nearest trees that the density looks at, the tree itself counted; no more than stay in the frame.
    """

    scorer: Scorer
    segments: Segmenter
    selected: Share = 0.7
    threshold: Annotated[float, Range(-1, 2)] = 0.8
    k: Count = 7

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        """Keep exactly `keep` tokens, in order of position."""
        b, n = evidence.x.shape[:2]
        index = torch.arange(n, device=evidence.x.device).expand(b, n)
        others = floor_share(1 - self.selected, keep)
        selected = self._selected(evidence, keep - others).flatten(1)  # [b, n]
        lead, linked = self._linked(evidence, selected, n - keep)
        tree = ~selected & ~linked
        mean = _means(precise(evidence.x), lead)
        square = squared_distances(by_frame(mean, evidence.frames).flatten(0, 1))
        rows = tree.view(square.shape[:2])
        same = rows[:, None] & rows[..., None]
        sizes = by_frame(tree, evidence.frames).sum(-1)  # [b, f]
        count = in_proportion(sizes, sizes, others, square.shape[1])
        most = count.flatten()[:, None].clamp_min(1).expand(square.shape[:2])
        peak = density_peaks(square, same, self.k, most).view(b, n)
        frame = index // square.shape[1]
        rank = place_in_group(2 * frame + (~tree).long(), places(descending(peak)))
        chosen = selected | (tree & (rank < take(count, frame)))
        order = ordered((~chosen).long())
        slot = places(order).where(chosen, -1)
        near = nearest_slots(square, same, slot.view(square.shape[:2])).view(b, n)
        own = torch.where(chosen, slot, near.where(tree, -1))
        return TokenMap(order[:, :keep], take(own, lead))

    def _selected(self, evidence: Evidence, total: int) -> Tensor:
        """Select `total` tokens, the first frames one more than others: `[b, f, n]` bool."""
        x = by_frame(unit(evidence.x), evidence.frames)  # [b, f, n, c]
        weight = by_frame(token_scores(self.scorer, evidence), evidence.frames)
        known = x.isfinite().all(-1) & weight.isfinite()
        apart = comparable(1 - (x @ x.mT).clamp(-1, 1)).nan_to_num(nan=2.0)  # [b, f, n, n]
        weight = precise(weight)
        frames, n = x.shape[1:3]
        taken = torch.zeros_like(known)
        own = torch.eye(n, dtype=torch.bool, device=x.device)
        # The first one is that whose nearest neighbour is furthest.
        distance = apart.masked_fill(own, torch.inf).amin(2).nan_to_num(posinf=1.0)
        for turn in range(-(-total // frames)):
            value = comparable(weight * distance).masked_fill(~known, -1.0)
            best = first_highest(value.masked_fill(taken, -2.0))  # [b, f]
            now = torch.zeros_like(taken).scatter(2, best[..., None], True)
            # The last turn is of the first frames only.
            now[:, max(0, total - turn * frames) :] = False
            taken = taken | now
            near = apart.gather(2, best[..., None, None].expand(-1, -1, 1, n))[:, :, 0]
            distance = near if turn == 0 else distance.minimum(near)
        return taken

    def _linked(self, evidence: Evidence, selected: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Return the first token of each token's tree, and which tokens are linked to the frame before.

        At most `most` links are made, the most similar ones; `[b, f * n]` each.
        """
        x = by_frame(unit(evidence.x), evidence.frames)
        b, frames, n, _ = x.shape
        free = ~selected.view(b, frames, n) & x.isfinite().all(-1)
        segment = self.segments.segment(evidence)
        inside = (segment.diff(dim=1) == 0)[..., None]  # [b, f - 1, 1]
        cosine = comparable(x[:, 1:] @ x[:, :-1].mT)  # [b, f - 1, n, n of the frame before]
        open_to = free[:, 1:, :, None] & free[:, :-1, None]
        cosine = cosine.where(open_to, -torch.inf)
        best = first_highest(cosine)  # [b, f - 1, n]
        value = cosine.gather(3, best[..., None])[..., 0]
        value = value.where(inside & (value > self.threshold), -torch.inf)
        value = torch.cat([torch.full_like(x[:, :1, :, 0], -torch.inf), value], 1).flatten(1)
        linked = (places(ordered(value, descending=True)) < most) & value.isfinite()
        index = torch.arange(frames * n, device=x.device)
        before = torch.arange(frames - 1, device=x.device)[:, None] * n + best
        before = torch.cat([index[:n].expand(b, n), before.flatten(1)], 1)
        lead = torch.where(linked, before, index)
        for _ in range(max(0, frames - 2).bit_length()):
            lead = take(lead, lead)
        return lead, linked


def _means(x: Tensor, lead: Tensor) -> Tensor:
    """Return for each token the mean of `x [b, n, c]` over the tokens with the lead that it is."""
    b, n, c = x.shape
    rows = (lead + n * torch.arange(b, device=x.device)[:, None]).flatten()
    total = x.new_zeros(b * n, c).index_add(0, rows, x.reshape(b * n, c))
    count = x.new_zeros(b * n).index_add(0, rows, x.new_ones(b * n))
    return (total / count.clamp_min(1)[:, None]).view(b, n, c)
