"""The tables of docs/evoprune.md about three trained models, made of docs/results; a test compares them.

python benchmarks/evoprune_task_tables.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import evoprune_search as search
import evoprune_tables
from ablate_evoprune import errors
from collage_runs import Z95
from evoprune_on_tasks import SITES, TRIED, bound, named
from evoprune_subjects import BUDGETS, FINAL, PAPER, attached, mean_scores, recorded, variant
from evoprune_tables import table
from evoprune_variants import Options
from torch import Tensor

from tokenzoo.evaluation import Job, Row
from tokenzoo.evaluation.statistics import Difference, difference, estimate

UNIT = {"dense": 1.0, "collage-vqa": 100.0, "digits": 100.0, "linear": 100.0}  # a cosine; points
PLACES = {"dense": 3, "collage-vqa": 1, "digits": 1, "linear": 1}
CONTROLS = ("random", "uniform", "pool")
Rows = Mapping[tuple[str, str], Row]


def shown(task: str, found: Difference) -> str:
    """A difference with half of its 95 % interval, in the unit of the task."""
    unit, places = UNIT[task], PLACES[task]
    return f"{unit * found.value:+.{places}f} ±{unit * found.half:.{places}f}"


def scores(rows: Rows, task: str, jobs: Sequence[Job]) -> list[float]:
    """The score of each sample: the mean over the jobs; hits of one job stay ints."""
    found = [next(iter(rows[task, attached(job)].scores.values())) for job in jobs]
    if len(found) == 1:
        return list(found[0])
    return [sum(values) / len(values) for values in zip(*found, strict=True)]


def first_round(part: str, change: Options) -> dict[str, float]:
    """The comparison of a change with the paper's numbers by the rule; {} if it was not compared."""
    content = evoprune_tables.load(part)
    limit = content["standard_errors_needed"]
    found = [one for one in content["rounds"][0] if one["change"] == change]
    return found[0] | {"real": abs(found[0]["errors"]) > limit} if found else {}


def star(part: str, change: Options) -> str:
    """A star if the difference is real at 95 % over all comparisons of the rule."""
    return " \\*" if first_round(part, change).get("real") else ""


def on_digits(change: Options) -> str:
    """The difference that the ablation on collages of digits found around the paper's numbers."""
    one = first_round("choose", change)
    if not one:
        return ""
    value = f"{100 * one['difference']:+.1f}"
    if not one["errors"]:  # equal: the file has no interval of it
        return value
    half = Z95 * one["difference"] / one["errors"]
    return f"{value} ±{100 * half:.1f}{star('choose', change)}"


def alternatives() -> str:
    """Every alternative on three models: the difference of the score to the paper's numbers."""
    rows = recorded("choosing")
    lines: list[list[str]] = []
    for changes in TRIED.values():
        for change in changes:
            line = [f"`{evoprune_tables.named(change)}`", on_digits(change)]
            for task in SITES:
                ours, home = (
                    scores(rows, task, [variant(one, keep) for keep in BUDGETS[task]])
                    for one in (PAPER | change, PAPER)
                )
                found = difference(ours, home)
                line.append(shown(task, found) + star(f"choose-{task}", change))
            lines.append(line)
    return table(["changed", "`digits`, points", *(heading(task) for task in SITES)], lines)


def heading(task: str) -> str:
    """A task with its unit."""
    return f"`{task}`, " + ("points" if UNIT[task] == 100 else "cosine")


def of_the_paper(task: str, names: Sequence[str], others: Sequence[str] = ()) -> str:
    """Named changes on the held-out half: the score and its difference to the first, at each budget."""
    rows, changes = recorded("held-out"), named(task)
    lines: list[list[str]] = []
    for keep in BUDGETS[task]:
        jobs: dict[str, Job] = {name: variant(PAPER | changes[name], keep) for name in names}
        first = scores(rows, task, [jobs[names[0]]])
        jobs |= {name: Job(name, keep) for name in others}
        for name, job in jobs.items():
            own = scores(rows, task, [job])
            row = rows[task, attached(job)]
            lines.append(
                [
                    f"`{name}`" if name in others else name,
                    str(keep),
                    f"{row.flops:.2f}",
                    level(task, own),
                    "" if name == names[0] else shown(task, difference(own, first)),
                ]
            )
    return table(["", "tokens", "operations", heading(task), "difference"], lines)


def level(task: str, own: Sequence[float]) -> str:
    """A mean with half of its 95 % interval."""
    found = estimate(own)
    unit, places = UNIT[task], PLACES[task]
    return f"{unit * found.value:.{places}f} ±{unit * found.half:.{places}f}"


def corrected(task: str, values: Tensor, comparisons: int) -> str:
    """The mean of differences `[s]`, its 95 % interval, and a star if it holds over so many comparisons."""
    found = difference(values.tolist(), [0.0] * len(values))
    real = abs(errors(values)) > bound(comparisons, len(values))
    return shown(task, found) + (" \\*" if real else "")


def chosen() -> str:
    """Every candidate of the search on the choosing halves: tokens and standard errors to the rivals."""
    part = search_file()["choose"]
    heads = ["candidate"]
    for task, at in part["tasks"].items():
        tokens = (", ".join(map(str, at["budgets"][rival])) for rival in search.RIVALS)
        heads.append(f"`{task}` ({'; '.join(tokens)})")
    lines: list[list[str]] = []
    for name in search.CANDIDATES:
        line = [name]
        for at in part["tasks"].values():
            found = at["errors"].get(name)
            tried = name in at["budgets"]
            if found is None:
                line.append("too slow" if tried else "")
                continue
            less = ", ".join(f"{found[rival]:+.1f}" for rival in search.RIVALS)
            line.append(f"{', '.join(map(str, at['budgets'][name]))}: {less}")
        lines.append([*line, f"{part['values'][name]:+.1f}" if name in part["values"] else ""])
    return table([*heads, "value"], lines)


def final() -> str:
    """The chosen candidate on the last halves: tokens and differences to both rivals at equal time."""
    content = search_file()
    name, tasks = content["choose"]["chosen"], content["test"]["tasks"]
    rows = recorded(FINAL)
    lines: list[list[str]] = []
    for task, at in tasks.items():
        there = in_file(rows, task)
        found = search.compared(there, [name], at).get(name)
        budgets = (", ".join(map(str, at["budgets"][one])) for one in (name, *search.RIVALS))
        if found is None:
            lines.append([heading(task), *budgets, str(at["samples"]), "too slow", ""])
            continue
        count = len(tasks) * len(search.RIVALS)
        less = (corrected(task, found[rival], count) for rival in search.RIVALS)
        lines.append([heading(task), *budgets, str(at["samples"]), *less])
    heads = ["task", "its tokens", "`evoprune`'s", "`tome`'s", "samples"]
    return table([*heads, "less `evoprune`", "less `tome`"], lines)


def in_file(rows: Rows, task: str) -> Callable[[Sequence[Job]], Tensor]:
    """The scores that are recorded for a task, from jobs to `[s]`."""
    return lambda jobs: mean_scores([rows[task, attached(one)] for one in jobs])


def search_file() -> dict[str, Any]:
    """What was searched."""
    return json.loads(search.SEARCH.read_text())


def two() -> str:
    """The candidates of the first search on the held-out halves, corrected for two candidates."""
    rows, lines = recorded("held-out"), list[list[str]]()
    for task, at in search_file()["two"]["tasks"].items():
        found = search.compared(in_file(rows, task), search.TWO, at)
        for name in search.TWO:
            budgets = (", ".join(map(str, at["budgets"][one])) for one in (name, *search.RIVALS))
            less = ["costs more at every budget", ""]
            if name in found:
                less = [wider(task, found[name][rival], len(search.TWO)) for rival in search.RIVALS]
            lines.append([heading(task), name, *budgets, *less])
    heads = ["task", "candidate", "its tokens", "`evoprune`'s", "`tome`'s"]
    return table([*heads, "less `evoprune`", "less `tome`"], lines)


def wider(task: str, values: Tensor, comparisons: int) -> str:
    """The mean of differences `[s]` with its 95 % interval, corrected for so many comparisons."""
    found = difference(values.tolist(), [0.0] * len(values))
    more = bound(comparisons, len(values)) / bound(1, len(values))
    low, high = (found.value + more * (end - found.value) for end in (found.low, found.high))
    return shown(task, Difference(found.value, low, high, found.p))


def timings() -> str:
    """Time and operations of each recipe at the budgets that were timed."""
    heads, lines = ["recipe"], dict[str, list[str]]()
    for task, at in search_file()["test"]["tasks"].items():
        tower = search.TOWERS[task]
        heads += [f"`{task}`, {keep}" for keep in tower.ladder]
        for name, own in at["times"].items():
            line = lines.setdefault(name, [f"`{name}`" if name in search.RIVALS else name])
            for keep, (ratio, low, high) in own.items():
                done = tower.operations(search.job(name, int(keep)))
                line.append(f"{ratio:.2f} ({low:.2f}-{high:.2f}); {done:.2f}")
    return table(heads, list(lines.values()))


def tables() -> Iterator[tuple[str, str]]:
    """Every table, with its name."""
    yield "alternatives", alternatives()
    for task in SITES:
        names = list(named(task))
        yield f"table 3, {task}", of_the_paper(task, names[:8], ("tome", *CONTROLS))
        yield f"figure 4, {task}", of_the_paper(task, ["skip", *names[9:]])
    there = search_file()
    if "two" in there:
        yield "the two", two()
    if "chosen" in there.get("choose", {}):
        yield "choice", chosen()
    if "test" in there:
        yield "times of the chosen", timings()
        yield "final", final()


if __name__ == "__main__":
    for name, text in tables():
        print(f"{name}\n\n{text}\n")
