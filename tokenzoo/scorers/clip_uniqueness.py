"""How much a token differs from the mean of its frame and of the clip (VidCom2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tokenzoo._core.kinds import Share
from tokenzoo._core.precision import comparable, fixed_point, precise
from tokenzoo._core.sorting import ordered
from tokenzoo._core.validation import floor_share
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer
from tokenzoo.temporal.segmenter import by_frame
from tokenzoo.tokens import unit

WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class ClipUniqueness(Scorer):
    """Minus a similarity with the mean token of the clip, of the frame, or of both.

    The similarity is a sum of Gaussians of the distance d of the unit vectors from their mean,
    sum over a of exp(-d^2 / 2 a) with a = 1/8, 1/4, 1/2, 1 and 2.

    Args:
        of: "clip", "frame", or "both", the sum of the two similarities.
        channels: share of the channels that is looked at, those that vary least over the clip, rounded down
            but at least one.
    """

    of: Literal["clip", "frame", "both"] = "both"
    channels: Share = 0.5

    def __post_init__(self) -> None:
        self.require("frames", "x")

    def score(self, evidence: Evidence) -> Tensor:
        """Return scores `[b, n]`, <= 0; NaN for tokens that are not finite."""
        x = precise(evidence.x)
        known = x.isfinite().all(-1, keepdim=True)  # [b, n, 1]
        x = by_frame(unit(self._steady(fixed_point(x).where(known, 0))), evidence.frames)
        known = by_frame(known, evidence.frames)  # [b, f, n, 1]
        total, count = (x * known).sum(2, keepdim=True), known.sum(2, keepdim=True)
        found = x.new_zeros(x.shape[:3])
        if self.of != "frame":
            mean = total.sum(1, keepdim=True) / count.sum(1, keepdim=True).clamp_min(1)
            found = found + _gaussians(x, mean)
        if self.of != "clip":
            found = found + _gaussians(x, total / count.clamp_min(1))
        return -comparable(found).masked_fill(~known[..., 0], float("nan")).flatten(1)

    def _steady(self, x: Tensor) -> Tensor:
        """Return the channels of `x [b, n, c]` with the lowest variance, in their order."""
        count = max(1, floor_share(self.channels, x.shape[-1]))
        chosen = ordered(x.var(1, correction=0))[:, :count].sort(-1).values
        return x.gather(2, chosen[:, None].expand(-1, x.shape[1], -1))


def _gaussians(x: Tensor, mean: Tensor) -> Tensor:
    """Return the sum of Gaussians of the distances of `x [b, f, n, c]` from a mean: `[b, f, n]`."""
    square = (x - mean).square().sum(-1)
    found = (-square / (2 * WIDTHS[0])).exp()
    for width in WIDTHS[1:]:
        found = found + (-square / (2 * width)).exp()
    return found
