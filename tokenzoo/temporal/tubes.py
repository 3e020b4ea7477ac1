"""Static and dynamic tokens of segments: the tokens of a static place are one tube through its segment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenzoo._core.precision import comparable, precise
from tokenzoo.temporal.segmenter import by_frame, firsts, lengths, to_previous
from tokenzoo.tokens import unit

Rule = Literal["neighbours", "pairs"]
"""What is static: every cosine with the frame before, or the mean of the cosines of all pairs of frames."""


@dataclass(frozen=True)
class Tubes:
    """A clip of f frames of n tokens, in which the tokens of a static place have joined.

    Attributes:
        static: `[b, f, n]` bool.
        leads: `[b, f, n]` bool: the first token of a tube, or a dynamic token: one of the units that
            are left.
        lead: `[b, f * n]` int64, the token of which each token's unit begins.
        x: `[b, f, n, c]` features; of static tokens, the mean of their tube.
        change: `[b, f, n]`, the squared distance of each token from that.
    """

    static: Tensor
    leads: Tensor
    lead: Tensor
    x: Tensor
    change: Tensor


def static_tokens(x: Tensor, segment: Tensor, threshold: float, rule: Rule) -> Tensor:
    """Return which tokens of `x [b, f, n, c]` do not change over their segment `[b, f]`: `[b, f, n]` bool.

    In a segment of one frame none does.
    """
    if rule == "neighbours":
        inside = (segment.diff(dim=1) == 0)[..., None]  # [b, f - 1, 1]
        moved = inside & ~(comparable(to_previous(x)) > threshold)
        moved = torch.cat([torch.zeros_like(x[:, :1, :, 0], dtype=torch.bool), moved], 1)
        still = summed(moved.long(), segment) == 0
    else:
        frames = lengths(segment)[..., None]  # [b, f, 1]
        square = summed(unit(x), segment).square().sum(-1)  # of the sum: all pairs, itself included
        mean = (square - frames) / (frames * (frames - 1)).clamp_min(1)
        still = comparable(mean) > threshold
    return still & (lengths(segment) > 1)[..., None]


def summed(values: Tensor, segment: Tensor) -> Tensor:
    """Sum `values [b, f, n, ...]` over each segment `[b, f]`; every frame gets its segment's sum."""
    b, f = segment.shape
    rows = (segment + f * torch.arange(b, device=segment.device)[:, None]).flatten()
    flat = values.reshape(b * f, -1)
    return torch.zeros_like(flat).index_add(0, rows, flat)[rows].view_as(values)


def tubes(x: Tensor, segment: Tensor, threshold: float, rule: Rule) -> Tubes:
    """Join the static tokens of features `x [b, f * n, c]` over their segments `[b, f]`."""
    frames = segment.shape[1]
    x = by_frame(precise(x), frames)  # [b, f, n, c]
    b, f, n, _ = x.shape
    static = static_tokens(x, segment, threshold, rule)
    first = firsts(segment)[..., None]  # [b, f, 1]
    frame = torch.arange(f, device=x.device)[:, None]
    place = torch.arange(n, device=x.device)
    leads = ~static | (first == frame)
    lead = torch.where(static, first, frame) * n + place
    mean = summed(x, segment) / lengths(segment)[..., None, None]
    # Selected, not multiplied: a token that is not finite stays alone.
    joined = x.where(~static[..., None], mean)
    change = (x - joined).square().sum(-1)
    return Tubes(static, leads, lead.view(b, f * n), joined, change)
