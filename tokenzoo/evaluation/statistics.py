"""Intervals of a score, and paired comparisons of two recipes on the same samples; all hold 95 %."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenzoo._core.needs import need
from tokenzoo.errors import BadArgumentError

LEVEL = 0.95
EQUAL = 1e-9  # half of the interval of differences that are all the same, relative to their mean


@dataclass(frozen=True)
class Estimate:
    """A mean over samples with its interval.

    Attributes:
        value: the mean.
        low: lower end of the interval.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


@dataclass(frozen=True)
class Difference(Estimate):
    """The mean difference of two recipes on the same samples.

    Attributes:
        p: probability of a difference at least as large if there were none, two-sided: McNemar's exact
            test for hits, the paired t-test otherwise; the sign test where all differences are the same.
            Not corrected for several tests.
    """

    p: float


def estimate(scores: Sequence[float]) -> Estimate:
    """Return the mean of scores with its interval: Wilson's for hits (the ints 0 and 1), else Student's.

    Raises:
        BadArgumentError: fewer than two scores.
    """
    n = _check(scores)
    if hits_only(scores):
        hits = round(sum(scores))
        ci = need("scipy.stats", "eval").binomtest(hits, n).proportion_ci(LEVEL, method="wilson")
        return Estimate(hits / n, float(ci.low), float(ci.high))
    mean, half = _student(scores)
    return Estimate(mean, mean - half, mean + half)


def difference(ours: Sequence[float], other: Sequence[float]) -> Difference:
    """Return the mean of ours - other, sample by sample.

    Raises:
        BadArgumentError: fewer than two scores, or not equally many.
    """
    if len(ours) != len(other):
        raise BadArgumentError(
            f"{len(ours)} scores and {len(other)}: a paired comparison needs the same samples"
        )
    _check(ours)
    changes = [a - b for a, b in zip(ours, other, strict=True)]
    mean, half = _student(changes)
    if hits_only([*ours, *other]):
        wins, losses = sum(c > 0 for c in changes), sum(c < 0 for c in changes)
        p = (
            float(need("scipy.stats", "eval").binomtest(wins, wins + losses).pvalue)
            if wins + losses
            else 1.0
        )
    elif half <= EQUAL * abs(mean):  # a t-test would be sure, with two samples as with a thousand
        p = 1.0 if mean == 0 else 2.0 ** (1 - len(changes))
    else:
        t = abs(mean) / half * _quantile(len(changes))
        p = float(2 * need("scipy.stats", "eval").t.sf(t, len(changes) - 1))
    return Difference(mean, mean - half, mean + half, p)


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values corrected for that many tests, in the same order.

    Holm, 1979: the r-th smallest of m is multiplied by m - r + 1, and none is below a smaller one. Below
    0.05, all differences that are called real are so at once, with probability 95 %.
    """
    corrected = [0.0] * len(ps)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda one: ps[one])):
        largest = max(largest, min(ps[place] * (len(ps) - rank), 1.0))
        corrected[place] = largest
    return corrected


def hits_only(scores: Sequence[float]) -> bool:
    """Whether the scores are hits and misses: ints, as `json` reads them."""
    return all(isinstance(score, int) for score in scores)


def _student(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and half of its interval by Student's t."""
    n = len(values)
    mean = sum(values) / n
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, _quantile(n) * (variance / n) ** 0.5


def _quantile(n: int) -> float:
    """Return how many standard errors of a mean of n are half of its interval."""
    return float(need("scipy.stats", "eval").t.ppf((1 + LEVEL) / 2, n - 1))


def _check(scores: Sequence[float]) -> int:
    if len(scores) < 2:
        raise BadArgumentError(f"{len(scores)} scores; an interval needs at least 2 samples")
    return len(scores)
