"""How many units of each set stay: exactly so many in all, or the authors' own shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenzoo._core.kinds import Index, Share
from tokenzoo._core.sorting import ordered, places
from tokenzoo.parts import Part

Rounding = Literal["nearest", "up", "down"]
_ROUNDING = {"nearest": torch.round, "up": torch.ceil, "down": torch.floor}


@dataclass(frozen=True)
class SetShares(Part):
    """A share of the units of every set, rounded: the total depends on the clip.

    Args:
        share: of the tokens of the clip, or of a set.
        of: "clip": the share is of all tokens, and spread over the units that are left of them (HoliTom);
            "set": it is of the units of each set (PruneVid).
        static: how the counts of static sets are rounded; halves go to the even number.
        dynamic: the same for dynamic sets.
        whole: sets of up to so many units stay whole.
    """

    share: Share = 0.1
    of: Literal["clip", "set"] = "clip"
    static: Rounding = "nearest"
    dynamic: Rounding = "up"
    whole: Index = 0

    def share_of_units(self, sizes: Tensor, tokens: int) -> Tensor:
        """Return the share of its units that each set keeps, `[b, 1]` float64.

        Args:
            sizes: `[b, 2 f]` units of the sets.
            tokens: of the clip.
        """
        left = sizes.sum(1, keepdim=True).double()
        if self.of == "set":
            return torch.full_like(left, self.share)
        return (self.share / (left / tokens)).clamp_max(1)

    def counts(self, sizes: Tensor, tokens: int) -> Tensor:
        """Return how many of the units of each set stay, `[b, 2 f]`.

        `sizes [b, 2 f]` are those of the static and the dynamic set of each frame in turn.
        """
        wanted = sizes * self.share_of_units(sizes, tokens)
        still, moving = _ROUNDING[self.static](wanted), _ROUNDING[self.dynamic](wanted)
        dynamic = torch.arange(sizes.shape[1], device=sizes.device) % 2 == 1
        found = torch.where(dynamic, moving, still).long()
        return torch.where(sizes <= self.whole, sizes, found.minimum(sizes))


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
