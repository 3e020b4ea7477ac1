"""Segments from clusters of frames, made contiguous (PruneVid)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.kinds import Count, Share
from tokenzoo._core.sorting import descending, first_highest
from tokenzoo._core.validation import floor_share
from tokenzoo.evidence import Evidence
from tokenzoo.temporal.density import density_peaks, squared_distances
from tokenzoo.temporal.segmenter import Segmenter, frame_vectors, numbered


@dataclass(frozen=True)
class DensityRuns(Segmenter):
    """Cluster the frames by density peaks (DPC-KNN), and make the clusters contiguous.

    Each frame is the mean of its tokens. Of every cluster only the longest runs of consecutive frames stay,
    and of these none that is a single frame. The frames between them join the longer of the two
    neighbouring segments, the earlier if both are as long.

    Args:
        share: clusters, as a share of the frames, rounded down; at least one.
        k: nearest frames that the density looks at, the frame itself counted.
    """

    share: Share = 0.25
    k: Count = 7

    def __post_init__(self) -> None:
        self.require("x")

    def segment(self, evidence: Evidence) -> Tensor:
        """Return the segments `[b, f]`."""
        return contiguous(self.clusters(evidence))

    def clusters(self, evidence: Evidence) -> Tensor:
        """Return the cluster of each frame, `[b, f]`, which need not be contiguous."""
        square = squared_distances(frame_vectors(evidence))  # [b, f, f]
        b, f, _ = square.shape
        every = torch.ones(b, f, dtype=torch.bool, device=square.device)
        score = density_peaks(square, every[:, None] & every[..., None], self.k)
        count = max(1, floor_share(self.share, f))
        centres = descending(score)[:, :count]  # [b, clusters]
        far = square.gather(2, centres[:, None].expand(b, f, count))
        nearest = first_highest(-far.nan_to_num(nan=torch.inf))
        own = torch.arange(count, device=square.device).expand(b, count)
        return nearest.scatter(1, centres, own)


def contiguous(label: Tensor) -> Tensor:
    """Return the segments `[b, f]` of frames in clusters `label [b, f]`: see `DensityRuns`."""
    f = label.shape[1]
    run = numbered(label.diff(dim=1) != 0)  # [b, f]
    size = torch.zeros_like(run).scatter_add(1, run, torch.ones_like(run)).gather(1, run)
    longest = torch.zeros_like(size).scatter_reduce(1, label, size, "amax").gather(1, label)
    stays = (size == longest) & (size > 1)
    at = torch.arange(f, device=label.device).expand_as(label)
    # The first frame from here on that stays; f: none does.
    follows = at.where(stays, f).flip(1).cummin(1).values.flip(1)
    after = follows.clamp_max(f - 1)
    right = label.gather(1, after).where(follows < f, -1)
    ahead = size.gather(1, after).where(follows < f, 0)
    found: list[Tensor] = []
    left, behind = torch.full_like(label[:, 0], -1), torch.zeros_like(label[:, 0])
    open_label = left  # of the frames that are joining a neighbour now
    joining = torch.zeros_like(stays[:, 0])
    for frame in range(f):
        choice = torch.where(behind >= ahead[:, frame], left, right[:, frame])
        open_label = torch.where(joining, open_label, choice)
        now = torch.where(stays[:, frame], label[:, frame], open_label)
        behind = torch.where(now == left, behind + 1, 1)
        left, joining = now, ~stays[:, frame]
        found.append(now)
    return numbered(torch.stack(found, 1).diff(dim=1) != 0)
