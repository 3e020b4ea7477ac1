"""How far two rankings of the same recipes agree: one by a score without labels, one by labelled accuracy.

Both are means over images, so both carry noise. The intervals draw the images of both again, or the
recipes; the reliability of a ranking is how well it agrees with itself on other images, and bounds what any
score could reach. A draw with replacement has more noise than the sample itself: the intervals lean low.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation of two rankings; None: one of them has ties alone.

    Attributes:
        candidates: how many are ranked.
        value: the correlation.
        over_images: 95 % interval, the images of both rankings drawn again.
        over_candidates: 95 % interval, the candidates drawn again.
        reliability: of the ranking by labels, and of the one without.
        ceiling: the correlation that two rankings of these reliabilities reach if their order is the same.
    """

    candidates: int
    value: float | None
    over_images: tuple[float, float] | None
    over_candidates: tuple[float, float] | None
    reliability: tuple[float, float] | None
    ceiling: float | None


@dataclass(frozen=True)
class Regret:
    """What a choice loses against the candidate with the best labelled accuracy.

    Attributes:
        seen: best accuracy - the choice's, on the same images: too high, since luck helps to be the best.
        crossed: the best is found on one half of the images, and the loss measured on the other; the mean
            over many halvings. It can be negative.
    """

    seen: float
    crossed: float


def agreement(labelled: np.ndarray, unlabelled: np.ndarray, seed: int = 0) -> Agreement:
    """Compare the rankings of k candidates by `labelled [k, s]` and by `unlabelled [k, u]`."""
    random = np.random.default_rng(seed)
    count = len(labelled)
    value = _spearman(labelled.mean(1)[None], unlabelled.mean(1)[None])
    drawn = _spearman(_drawn(labelled, random), _drawn(unlabelled, random))
    picks = random.integers(count, size=(DRAWS, count))
    others = _spearman(labelled.mean(1)[picks], unlabelled.mean(1)[picks])
    found = _reliability(labelled, random), _reliability(unlabelled, random)
    known = not any(np.isnan(found))
    return Agreement(
        count,
        _number(value[0]),
        _interval(drawn),
        _interval(others),
        (round(found[0], 4), round(found[1], 4)) if known else None,
        round((max(found[0], 0.0) * max(found[1], 0.0)) ** 0.5, 4) if known else None,
    )


def regret(labelled: np.ndarray, choice: int, seed: int = 0) -> Regret:
    """Return what candidate `choice` of `labelled [k, s]` loses against the best."""
    means = labelled.mean(1)
    first, second = _halves(labelled, np.random.default_rng(seed))  # [d, k]
    best = np.take_along_axis(second, first.argmax(1)[:, None], 1)[:, 0]  # [d]
    lost = float((best - second[:, choice]).mean())
    return Regret(round(float(means.max() - means[choice]), 4), round(lost, 4))


def _drawn(scores: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the means `[d, k]` of scores `[k, s]` over images drawn with replacement, d times."""
    images = scores.shape[1]
    counts = random.multinomial(images, np.full(images, 1 / images), size=DRAWS)  # [d, s]
    return counts @ scores.T / images


def _halves(scores: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the means `[d, k]` over one half of the images, drawn d times, and over the other half."""
    images = scores.shape[1]
    order = random.random((DRAWS, images)).argsort(1).argsort(1)  # [d, s]
    first = order < images // 2
    return first @ scores.T / first.sum(1)[:, None], ~first @ scores.T / (~first).sum(1)[:, None]


def _reliability(scores: np.ndarray, random: np.random.Generator) -> float:
    """Return the correlation of the ranking with one on as many other images.

    From halves: Spearman (1910) and Brown (1910), 2 r / (1 + r).
    """
    halves = _spearman(*_halves(scores, random))
    if np.isnan(halves).all():
        return float("nan")
    r = float(np.nanmean(halves))
    return 2 * r / (1 + r) if r > 0 else 0.0


def _spearman(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the rank correlation `[d]` of means `[d, k]`; nan where all of them are equal."""
    ranks = [rankdata(means, axis=1) for means in (one, other)]
    first, second = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    both = (first**2).sum(1) * (second**2).sum(1)
    with np.errstate(invalid="ignore"):
        return (first * second).sum(1) / np.sqrt(both)


def _interval(values: np.ndarray) -> tuple[float, float] | None:
    if np.isnan(values).all():
        return None
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return round(float(low), 4), round(float(high), 4)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
