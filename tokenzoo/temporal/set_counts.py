"""How many units of each set stay: exactly so many in all, or the authors' own shares."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tokenzoo._core.sorting import ordered, places

Counting = Literal["clip", "set"]
"""HoliTom's counts, a share of all tokens of a clip, or PruneVid's, a share of each set."""

WHOLE = 14
"""PruneVid leaves sets of up to so many units whole."""


def share_of_units(sizes: Tensor, tokens: int, share: float) -> Tensor:
    """Return the share of its units that each set keeps in HoliTom: `[b, 1]`, float64.

    Args:
        sizes: `[b, s]` units of the sets; fewer than tokens, since static ones have joined.
        tokens: of the clip.
        share: of all tokens that stays.
    """
    left = sizes.sum(1, keepdim=True).double()
    return (share / (left / tokens)).clamp_max(1)


def authors_counts(sizes: Tensor, tokens: int, share: float, counting: Counting) -> Tensor:
    """Return how many units of each set stay, as in the authors' code: `[b, 2 f]`; the total varies.

    HoliTom rounds static sets to the nearest (halves to even) and dynamic ones up; PruneVid rounds down.

    Args:
        sizes: `[b, 2 f]` units of the static and of the dynamic set of each frame in turn.
        tokens: of the clip.
        share: of all tokens, or of the units of each set.
        counting: "clip", HoliTom's way, or "set", PruneVid's.
    """
    if counting == "set":
        found = (sizes.double() * share).floor().long()
        return torch.where(sizes <= WHOLE, sizes, found)
    wanted = sizes * share_of_units(sizes, tokens, share)
    dynamic = torch.arange(sizes.shape[1], device=sizes.device) % 2 == 1
    return torch.where(dynamic, wanted.ceil(), wanted.round()).long().minimum(sizes)


def in_proportion(weights: Tensor, limits: Tensor, total: int | Tensor, most: int) -> Tensor:
    """Divide a total over groups in proportion to their weights, exactly (Webster's rounding).

    The j-th token of a group of weight w has the rank (j - 1/2) / w; the `total` first ranks are taken.

    Args:
        weights: `[b, g]`, >= 0; a group of weight 0 takes what the others have no room for.
        limits: `[b, g]`, the most that a group can take, at most `most`.
        total: at most the sum of the limits; an int, or one for each row `[b, 1]`.
        most: the largest limit.

    Returns:
        `[b, g]` int64; the sum is `total`. Ties go to the group with the lower index.
    """
    b, groups = weights.shape
    turn = torch.arange(most, device=weights.device)
    rank = (turn + 0.5) / weights.clamp_min(1e-12).double()[..., None]  # [b, g, most]
    rank = rank.masked_fill(turn >= limits[..., None], torch.inf).view(b, groups * most)
    taken = (places(ordered(rank)) < total) & rank.isfinite()
    return taken.view(b, groups, most).sum(-1)
