"""Tokens at even steps of their summed scores: the more uneven the scores, the fewer (ATS)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.precision import comparable, precise
from tokenzoo._core.sorting import choose, descending, first_highest, ordered, places
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer, Selector, token_scores
from tokenzoo.token_map import take


@dataclass(frozen=True)
class Sampled(Selector):
    """Keep the tokens at which the cumulative sum of the scores is nearest to k even steps from 0 to 1.

    The steps are at (2 i - 1) / (2 k), i = 1 ... k. Several steps can meet one token, so fewer than k can
    stay.

    Args:
        scorer: >= 0; a high score means keep. Scores are divided by their sum + 1e-6.
        fill: fill up to k with the highest of the other tokens.
        match_reference: as in ATS's code: the steps are a floating-point range, which has k - 1 of them
            for some k; padding (mass 0) counts 0.1 more, which is meant to keep it from being chosen.
    """

    scorer: Scorer
    fill: bool = False
    match_reference: bool = False

    @property
    def ragged(self) -> bool:
        """Whether the count depends on the data: it does, without `fill`."""
        return not self.fill

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens: those that a step meets, in pool order, then the others, the highest first."""
        scores, met = self._met(evidence, pool, k)
        p = pool.shape[1]
        place = torch.arange(p, device=pool.device)
        order = ordered(torch.where(met, place, p + places(descending(scores))))
        return choose(pool, order[:, :k])

    def lengths(self, evidence: Evidence, pool: Tensor, k: int) -> Tensor | None:
        """Return the number of tokens that a step meets: `[b]`."""
        return None if self.fill else self._met(evidence, pool, k)[1].sum(-1)

    def _met(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the scores of the pool, and whether a step meets each token: `[b, p]` each."""
        scores = take(token_scores(self.scorer, evidence), pool)
        met = torch.zeros_like(scores, dtype=torch.bool)
        if k == 0 or pool.shape[1] == 0:
            return scores, met
        known = scores.isfinite()
        weight = precise(scores).where(known, 0)
        total = (weight / (weight.sum(-1, keepdim=True) + 1e-6)).cumsum(-1)
        if self.match_reference:
            total = total + 0.1 * (take(evidence.mass, pool) == 0).to(total.dtype)
        total = total.masked_fill(~known, torch.inf)  # far from every step
        gap = (total[:, None] - self.steps(k, total)[:, None]).abs()  # [b, k, p]
        return scores, met.scatter(1, first_highest(-comparable(gap)), True)

    def steps(self, k: int, like: Tensor) -> Tensor:
        """Return the steps `[k]`, in the dtype and on the device of a tensor."""
        if self.match_reference and k > 1:
            first, last = 1 / (2 * k), (2 * k - 1) / (2 * k)
            return torch.arange(first, last, 2 / (2 * k), dtype=like.dtype, device=like.device)
        return (2 * torch.arange(k, dtype=like.dtype, device=like.device) + 1) / (2 * k)
