"""The highest scores of every run of tokens, each run with a quota of its own (HoloV)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenzoo._core.kinds import Count, NonNegative
from tokenzoo._core.precision import comparable, precise
from tokenzoo._core.sorting import choose, descending, first_of, place_in_group, places, run_of
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer, Selector, token_scores
from tokenzoo.token_map import take


@dataclass(frozen=True)
class RunQuotas(Selector):
    """Keep the highest-scoring tokens of every run of the image, in proportion to the mean scores of runs.

    The image, in raster order, is cut into runs of n / runs tokens, the first ones one longer where that
    is needed. A run of weight w, its mean score to `power`, keeps floor(k * w / sum of w) tokens; what is
    left goes, one each, to the runs of the highest weights. What a run cannot take, because it has fewer
    tokens, goes to the tokens with the highest scores of all others.

    Args:
        scorer: a high score means keep; scores below 0 count as 0 in a mean.
        runs: number of runs; at most all tokens.
        power: of the mean scores; 0: all runs keep as many.
    """

    scorer: Scorer
    runs: Count = 16
    power: NonNegative = 1.0

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens: the quotas first, then the others, each by score."""
        n = evidence.x.shape[1]
        runs = min(self.runs, n)
        run = run_of(pool, n, runs)  # [b, p]
        scores = take(token_scores(self.scorer, evidence), pool)
        known = scores.isfinite()
        place = places(descending(scores))
        weight = self._weights(scores.where(known, 0), known, run, runs)
        quota = _quotas(weight, k)  # [b, runs]
        inside = place_in_group(run, place) < take(quota, run)
        return choose(pool, first_of(k, (~known).long(), (~inside).long(), place))

    def _weights(self, scores: Tensor, known: Tensor, run: Tensor, runs: int) -> Tensor:
        """Return the weights of the runs: `[b, runs]`."""
        scores = precise(scores).clamp_min(0)
        zero = scores.new_zeros(len(scores), runs)
        sums = zero.scatter_add(1, run, scores)
        count = zero.scatter_add(1, run, known.to(zero.dtype)).clamp_min(1)
        return comparable(sums / count).pow(self.power)


def _quotas(weight: Tensor, k: int) -> Tensor:
    """Return k in proportion to `weight [b, runs]`, rounded down, and one more for the highest of them."""
    share = k * weight / weight.sum(-1, keepdim=True).clamp_min(1e-30)
    quota = comparable(share).floor().long()  # what is 2 but for rounding is 2
    left = k - quota.sum(-1, keepdim=True)
    return quota + (places(descending(weight)) < left).long()
