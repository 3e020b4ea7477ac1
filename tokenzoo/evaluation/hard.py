"""Hard and easy samples: a smaller image, at the same number of tokens, is what sorts them.

`downsample` is the cheapest way to fewer tokens. What it still answers right needs no method; the samples
that it gets wrong and the bare model gets right are those where a method can be worth its complexity. The
idea is that of VTC-Bench (Liao et al., 2025, https://arxiv.org/abs/2510.07143), for the rows of any task
whose answers are right or wrong. Each budget has its own groups, sorted by `downsample` at that budget.

    hard        downsample wrong, bare right
    easy        downsample right, whatever the bare model says
    neither     both wrong: in no group
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenzoo.evaluation.statistics import Estimate, estimate, hits_only
from tokenzoo.evaluation.summary import Line, Summary

SORTER = "downsample"
LEAST = 12  # with fewer samples the interval of a score of one half is wider than half of the scale


@dataclass(frozen=True)
class HardLine:
    """One recipe on the two groups of its budget.

    Attributes:
        line: the recipe.
        hard: its score on the hard samples; None: there are fewer than `LEAST`.
        easy: on the easy ones.
    """

    line: Line
    hard: Estimate | None
    easy: Estimate | None


@dataclass(frozen=True)
class Split:
    """The samples of a task, sorted by `downsample` at one budget.

    Attributes:
        metric: what is right or wrong.
        keep: the budget.
        tokens: patch tokens of `downsample`; None: it depends on the image.
        hard: how many samples are hard.
        easy: how many are easy.
        neither: how many both the bare model and `downsample` get wrong.
        bare: the bare model on the easy samples; on the hard ones it is right. None: they are too few.
        lines: the recipes other than `downsample`, which has 0 and 1; the best on hard samples first.
    """

    metric: str
    keep: int | float
    tokens: int | None
    hard: int
    easy: int
    neither: int
    bare: Estimate | None
    lines: Sequence[HardLine]


@dataclass(frozen=True)
class HardSamples:
    """Hard and easy samples of a task.

    Attributes:
        splits: one for each metric whose answers are right or wrong, and each budget.
        missing: what could not be split, as sentences.
    """

    splits: Sequence[Split]
    missing: Sequence[str]


def hard_samples(one: Summary) -> HardSamples:
    """Sort the samples of a task, for each metric of right and wrong and each budget."""
    if one.bare is None:
        return HardSamples([], ["the rows have no bare model, which says what can be answered"])
    metrics = [metric for metric in one.metrics if hits_only(one.bare.scores[metric])]
    if not metrics:
        return HardSamples([], ["no answer of this task is right or wrong"])
    budgets = {repr(line.key.keep): line.key.keep for line in one.lines}
    splits, missing = list[Split](), list[str]()
    for keep in budgets.values():
        here = [line for line in one.lines if repr(line.key.keep) == repr(keep)]
        sorter = next((line for line in here if line.name == SORTER), None)
        if keep is None or sorter is None:
            why = one.refused.get(SORTER) or one.refused.get(f"{SORTER} at {keep}")
            missing.append(
                f"keep={keep}: {SORTER} did not run"
                + (f" ({why})" if why else "; add it to --recipe")
            )
            continue
        splits += [
            _split(metric, keep, one.bare, sorter, [line for line in here if line is not sorter])
            for metric in metrics
        ]
    splits.sort(key=lambda split: metrics.index(split.metric))
    return HardSamples(splits, missing)


def _split(
    metric: str, keep: int | float, bare: Line, sorter: Line, others: Sequence[Line]
) -> Split:
    pairs = list(zip(sorter.scores[metric], bare.scores[metric], strict=True))
    hard = [place for place, (small, whole) in enumerate(pairs) if not small and whole]
    easy = [place for place, (small, _) in enumerate(pairs) if small]
    lines = [
        HardLine(line, _score(line, metric, hard), _score(line, metric, easy)) for line in others
    ]
    lines.sort(key=lambda one: tuple(-part.value if part else 0 for part in (one.hard, one.easy)))
    return Split(
        metric,
        keep,
        sorter.tokens,
        len(hard),
        len(easy),
        len(pairs) - len(hard) - len(easy),
        _score(bare, metric, easy),
        lines,
    )


def _score(line: Line, metric: str, places: Sequence[int]) -> Estimate | None:
    """Return the score on some samples; None if they are too few to say anything."""
    scores = line.scores[metric]
    return estimate([scores[place] for place in places]) if len(places) >= LEAST else None
