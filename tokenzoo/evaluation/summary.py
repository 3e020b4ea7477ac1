"""From rows to what is shown of a task: seeds pooled, intervals, and paired comparisons.

The seeds of a recipe are pooled first: each sample's score is its mean over the seeds, so that samples stay
the unit of every interval and test. Each recipe at a budget is then compared, sample by sample on the main
metric, with the bare model, with `tome` at the same budget, with the best control there, and with the best
recipe there. The p-values of one task are corrected together (Holm): a pair is tested once, whatever it is
compared for.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tokenzoo._core.quoting import quote
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation.results import OK, Key, Row
from tokenzoo.evaluation.statistics import LEVEL, Difference, Estimate, difference, estimate, holm

BARE, CONTROL, REFERENCE, BEST = "bare", "best control", "tome", "best"


@dataclass(frozen=True)
class Line:
    """One recipe at one budget, its seeds pooled.

    Attributes:
        name: the recipe, and its options in brackets; "bare" is the bare model.
        key: that of its first seed.
        control: whether it is a baseline for methods.
        seeds: how many were pooled.
        scores: by metric, the mean over the seeds for each sample.
        estimates: by metric, the mean over samples.
        of_bare: the main metric relative to the bare model's; None: not known.
        agreement: share of answers that are the bare model's; None: the task has no answers.
        tokens: patch tokens after the last reduction; None: it depends on the image.
        flops: operations relative to the bare model.
        time: median and quartiles relative to the bare model, each the mean over seeds; () if not measured.
        against: differences of the main metric, ours - theirs, with corrected p, by `BARE`, `CONTROL`,
            `REFERENCE` and `BEST`; one is missing if there is no such other line.
        among_best: it is the best at its budget, or not distinguishable from it.
    """

    name: str
    key: Key
    control: bool
    seeds: int
    scores: Mapping[str, Sequence[float]]
    estimates: Mapping[str, Estimate]
    of_bare: float | None
    agreement: float | None
    tokens: int | None
    flops: float | None
    time: Sequence[float]
    against: Mapping[str, Difference] = field(default_factory=dict[str, Difference])
    among_best: bool = False


@dataclass(frozen=True)
class Summary:
    """What is shown of a task on one model.

    Attributes:
        task: its name.
        model: name of the model.
        facts: what else decides the scores.
        metrics: their names, the main one first.
        samples: how many there are.
        bare: the bare model; None: the rows have no such row.
        lines: the recipes, budget by budget, the best first.
        refused: what could not run, with the reason: a recipe, or a recipe at a budget if it could run at
            another one.
        commands: those that measured the rows.
        versions: of the libraries, each with all values that the rows have.
    """

    task: str
    model: str
    facts: Mapping[str, Any]
    metrics: Sequence[str]
    samples: int
    bare: Line | None
    lines: Sequence[Line]
    refused: Mapping[str, str]
    commands: Sequence[str]
    versions: Mapping[str, Sequence[str]]


def summarize(rows: Iterable[Row], controls: Container[str] = ()) -> list[Summary]:
    """Return one summary for each task and model, in the order in which they come.

    Args:
        rows: of any number of tasks and files; a row that comes again counts once.
        controls: names of the recipes that are baselines for methods.

    Raises:
        BadArgumentError: rows of one task and model contradict each other: other facts, metrics, numbers
            of samples, or other scores under the same key.
    """
    tasks: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        known = tasks.setdefault((row.key.task, row.key.model), {})
        _check(row, known)
        known.setdefault(row.key.label, row)
    return [_summary(list(known.values()), controls) for known in tasks.values()]


def _check(row: Row, known: Mapping[str, Row]) -> None:
    where = f"rows of {row.key.task} on {row.key.model}"
    twin, first = known.get(row.key.label, row), next(iter(known.values()), row)
    if dict(row.facts) != dict(first.facts):
        raise BadArgumentError(
            f"{where} have other facts: {quote(dict(first.facts))} and {quote(dict(row.facts))}. They are "
            "not comparable: report them apart"
        )
    if (row.status, row.scores) != (twin.status, twin.scores):
        raise BadArgumentError(
            f"two {where} have other scores under the same key {row.key.label}: report only one of them"
        )
    scored = next((one for one in known.values() if one.status == OK), row)
    if row.status == OK and _shape(row) != _shape(scored):
        raise BadArgumentError(
            f"{where} have other metrics or numbers of samples: {quote(_shape(scored))} for "
            f"{scored.key.label}, {quote(_shape(row))} for {row.key.label}"
        )


def _shape(row: Row) -> dict[str, int]:
    return {metric: len(scores) for metric, scores in row.scores.items()}


def _summary(rows: Sequence[Row], controls: Container[str]) -> Summary:
    """Summarize the rows of one task and model."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.status == OK:
            groups.setdefault(replace(row.key, seed=0).label, []).append(row)
    shape = _shape(next((group[0] for group in groups.values()), rows[0]))
    metrics = list(shape)
    bare_rows = next((group for group in groups.values() if group[0].key.recipe is None), None)
    bare = None if bare_rows is None else _line(bare_rows, None, metrics, controls)
    lines = [
        _line(group, bare, metrics, controls)
        for group in groups.values()
        if group[0].key.recipe is not None
    ]
    lines.sort(key=lambda one: (*budget_order(one.key.keep), -one.estimates[metrics[0]].value))
    versions: dict[str, list[str]] = {}
    for row in rows:
        for library, version in row.versions.items():
            if version not in versions.setdefault(library, []):
                versions[library].append(version)
    return Summary(
        rows[0].key.task,
        rows[0].key.model,
        rows[0].facts,
        metrics,
        shape[metrics[0]] if metrics else 0,
        bare,
        _compared(lines, bare, metrics),
        _refused(rows),
        list(dict.fromkeys(row.command for row in rows if row.command)),
        versions,
    )


def budget_order(keep: float | None) -> tuple[bool, float]:
    """Return what sorts budgets: the bare model, shares from the largest on, then counts."""
    return (isinstance(keep, int), 0.0 if keep is None else -float(keep))


def _line(
    seeds: Sequence[Row], bare: Line | None, metrics: Sequence[str], controls: Container[str]
) -> Line:
    first = seeds[0]
    key = first.key
    scores = {one: pooled([row.scores[one] for row in seeds]) for one in metrics}
    estimates = {one: estimate(values) for one, values in scores.items()}
    whole = 0.0 if bare is None else bare.estimates[metrics[0]].value
    same = [value for row in seeds for value in row.agreement]
    times = [row.time for row in seeds if row.time]
    return Line(
        name_of(key),
        key,
        key.recipe is not None and key.recipe in controls,
        len(seeds),
        scores,
        estimates,
        estimates[metrics[0]].value / whole if whole else None,
        sum(same) / len(same) if same else None,
        first.tokens,
        first.flops,
        [sum(values) / len(values) for values in zip(*times, strict=True)],
    )


def pooled(seeds: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean over seeds for each sample; where all agree their value, so that hits stay hits."""
    return [
        values[0] if len(set(values)) == 1 else sum(values) / len(values)
        for values in zip(*seeds, strict=True)
    ]


def name_of(key: Key) -> str:
    """Return the recipe with its options in brackets; "bare" for the bare model."""
    options = ", ".join(f"{name}={value}" for name, value in json.loads(key.options).items())
    return (key.recipe or BARE) + (f" ({options})" if options else "")


def _compared(lines: Sequence[Line], bare: Line | None, metrics: Sequence[str]) -> list[Line]:
    """Return the lines with their comparisons, corrected over all of them."""
    others = [_others(line, lines, bare) for line in lines]
    pairs: dict[tuple[int, int], Difference] = {}
    for line, its in zip(lines, others, strict=True):
        for other in its.values():
            if (id(other), id(line)) not in pairs:
                found = difference(line.scores[metrics[0]], other.scores[metrics[0]])
                pairs[id(line), id(other)] = found
    corrected = holm([one.p for one in pairs.values()])
    pairs = {
        pair: replace(one, p=p) for (pair, one), p in zip(pairs.items(), corrected, strict=True)
    }
    made: list[Line] = []
    for line, its in zip(lines, others, strict=True):
        against = {
            name: pairs[id(line), id(other)]
            if (id(line), id(other)) in pairs
            else _turned(pairs[id(other), id(line)])
            for name, other in its.items()
        }
        among = BEST not in against or against[BEST].p > 1 - LEVEL
        made.append(replace(line, against=against, among_best=among))
    return made


def _others(line: Line, lines: Sequence[Line], bare: Line | None) -> dict[str, Line]:
    """Return what a line is compared with; `lines` has the best of each budget first."""
    here = [one for one in lines if repr(one.key.keep) == repr(line.key.keep)]
    control = next((one for one in here if one.control), None)
    reference = next((one for one in here if one.name == REFERENCE), None)
    found = {BARE: bare, CONTROL: control, REFERENCE: reference, BEST: here[0]}
    return {name: one for name, one in found.items() if one is not None and one is not line}


def _turned(one: Difference) -> Difference:
    return Difference(0.0 - one.value, 0.0 - one.high, 0.0 - one.low, one.p)


def _refused(rows: Sequence[Row]) -> dict[str, str]:
    runs = {name_of(row.key) for row in rows if row.status == OK}
    found: dict[str, str] = {}
    for row in rows:
        if row.status != OK:
            name = name_of(row.key)
            found.setdefault(f"{name} at {row.key.keep}" if name in runs else name, row.reason)
    return found
