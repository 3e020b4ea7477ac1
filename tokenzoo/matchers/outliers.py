"""The outliers of a score; their number depends on the data (PruMerge, TRIM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenzoo._core.precision import comparable
from tokenzoo._core.sorting import choose, descending, ordered
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer, Selector, token_scores
from tokenzoo.token_map import take


@dataclass(frozen=True)
class Outliers(Selector):
    """Keep the tokens whose score is above Q3 + 1.5 * (Q3 - Q1), with the quartiles of the pool.

    At least one token and at most k stay; the others of the k are padding.

    Args:
        scorer: a high score means keep.
        spread: keep also every s-th token of the image, from the first on but never the last, with
            s = floor(floor(n / outliers) / 3), at least 1 (PruMerge+).
        over: "image", or "batch": quartiles over all images, and from each the average number of tokens
            above them, as in PruMerge's and TRIM's code. The result then depends on the rest of the
            batch.
    """

    scorer: Scorer
    spread: bool = False
    over: Literal["image", "batch"] = "image"

    @property
    def ragged(self) -> bool:
        """True: the count depends on the data."""
        return True

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens: the outliers, the highest first, the spread ones, ascending, the others."""
        order, _ = self._ordered(evidence, pool)
        return choose(pool, order[:, :k])

    def lengths(self, evidence: Evidence, pool: Tensor, k: int) -> Tensor:
        """Return the number of outliers and spread tokens: `[b]`."""
        return self._ordered(evidence, pool)[1].clamp_max(k)

    def _ordered(self, evidence: Evidence, pool: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pool indices in order `[b, p]`, and how many of them stay `[b]`."""
        n, p = evidence.x.shape[1], pool.shape[1]
        scores = comparable(take(token_scores(self.scorer, evidence), pool))  # [b, p]
        order = descending(scores)
        if p == 0:
            return order, order.new_zeros(len(order))
        count = self._count(scores)[:, None]  # [b, 1]
        if self.spread:
            step = (n // count // 3).clamp_min(1)
            place = torch.arange(p, device=pool.device).expand_as(pool)
            above = torch.empty_like(order).scatter(1, order, place) < count
            on = (pool % step == 0) & (pool < n - 1) & ~above & scores.isfinite()
            rank = torch.empty_like(order).scatter(1, order, place)
            order = ordered(torch.where(above, rank, torch.where(on, p + pool, p + n + rank)))
            count = count + on.sum(1, keepdim=True)
        return order, count[:, 0]

    def _count(self, scores: Tensor) -> Tensor:
        """Return the number of outliers among `scores [b, p]`, at least 1: `[b]`."""
        whole = scores.flatten()[None] if self.over == "batch" else scores
        known = whole.where(whole.isfinite(), torch.nan)
        low, high = quantile(known, 0.25), quantile(known, 0.75)  # [rows] each
        count = (known > (high + 1.5 * (high - low))[:, None]).sum(-1)
        if self.over == "batch":
            count = (count // scores.shape[0]).expand(scores.shape[0])
        return count.clamp_min(1)


def quantile(values: Tensor, q: float) -> Tensor:
    """Return the quantile of `values [rows, p]` without NaN, linearly interpolated: `[rows]`.

    The same as `torch.nanquantile`, which synchronises with the host in torch 2.11.
    """
    ascending = values.sort(dim=-1).values  # NaN comes last
    last = (~values.isnan()).sum(-1, keepdim=True).sub(1).clamp_min(0)  # [rows, 1]
    at = last.to(values.dtype) * q
    low, high = at.floor().long(), at.ceil().long()
    found = torch.lerp(ascending.gather(-1, low), ascending.gather(-1, high), at - low)
    return found[:, 0]
