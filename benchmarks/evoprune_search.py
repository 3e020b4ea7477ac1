"""Past the paper: is a recipe of EvoPrune's parts ahead of `evoprune` and `tome` at equal time?

    python benchmarks/evoprune_search.py --photographs FOLDER    # times, then the held-out halves
    python benchmarks/evoprune_task_tables.py                    # the tables of docs/evoprune.md

THE RULE, written down before anything was measured with this script.

- Time: every candidate, `evoprune` and `tome` at two budgets, all in the same rounds, relative to the bare
  model: CPU time of one thread, since the machine does other work too. The time of a recipe at any budget
  is a line in the operations of its plan, through these two (`fitted`).
- Equal time: the targets are the times of `evoprune` at the two budgets of the task. A candidate gets the
  most tokens with which it is not slower than the target, `tome` the fewest with which it is not faster.
- A sample's score is the mean over both targets of the main metric. Each candidate is compared with
  `evoprune` and with `tome`, paired, on the held-out halves of three tasks.
- A candidate is ahead if all six differences are above 0 at 95 %, after Bonferroni's correction for the two
  candidates (all six must be, so there is none for the comparisons).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import linear_regression
from time import process_time
from typing import Any

import torch
from ablate_evoprune import errors
from evoprune_on_tasks import command
from evoprune_subjects import (
    BUDGETS as BUDGETS_OF_THE_RULE,
)
from evoprune_subjects import (
    PAPER,
    PATCHES,
    RESULTS,
    Measured,
    attached,
    file_of,
    mean_scores,
    recorded,
    subject_of,
    variant,
)
from evoprune_variants import Options
from torch import Tensor

from tokenzoo.errors import BudgetError
from tokenzoo.evaluation import Job, Subject
from tokenzoo.tools.benchmark.candidates import copy_of
from tokenzoo.tools.timing import Timing, in_turn, relative

PLAIN: Options = {"lam": 0.0, "ctr": 0.0}  # merge what is alike, and nothing else
CANDIDATES: dict[str, Options] = {
    "plain": PLAIN,
    "plain, every block but the first": PLAIN | {"every": 1},
}
# With 16 tokens `collage-vqa` has hardly more right than the most common answers would.
BUDGETS = {**BUDGETS_OF_THE_RULE, "collage-vqa": (64, 32)}
RIVALS = ("evoprune", "tome")
CONTROLS = ("random", "uniform", "pool")
LADDER = (32, 96)  # budgets that are timed
SHAPE = {"dense": (12, 384), "collage-vqa": (8, 384), "digits": (12, 96)}  # blocks, width
TIMES = RESULTS / "evoprune-times.json"


def job(name: str, keep: int) -> Job:
    """A rival, a control or a candidate, by its name."""
    if name in CANDIDATES:
        return variant(PAPER | CANDIDATES[name], keep)
    return variant(PAPER, keep) if name == "evoprune" else Job(name, keep)


def operations(name: str, keep: int, task: str) -> float:
    """Operations of the blocks by the plan, relative to the bare model's."""
    depth, width = SHAPE[task]
    return job(name, keep).method().plan(PATCHES, depth, prefix=1, width=width).flops


def cpu_times(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """As `interleaved`, by the CPU time of this process: a clock would count the work of others too."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for name in in_turn(list(calls), 1 + rounds):  # the first round is warm-up
        start = process_time()
        calls[name]()
        seconds[name].append(process_time() - start)
    bare = seconds["bare"][1:]
    return {name: relative(own[1:], bare) for name, own in seconds.items()}


def timed(subject: Subject, names: Sequence[str], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Median and quartiles of the time, by name and budget, all in the same rounds."""
    calls: dict[str, Any] = {"bare": lambda: subject.call(subject.model)}
    with ExitStack() as stack:
        for name in names:
            for keep in LADDER:
                model = copy_of(subject.model)
                stack.enter_context(job(name, keep).method().attach(model, **subject.attach))
                calls[f"{name}|{keep}"] = lambda model=model: subject.call(model)
        with torch.inference_mode():
            found = cpu_times(calls, rounds)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for label, timing in found.items():
        if label != "bare":
            name, _, keep = label.partition("|")
            times[name][keep] = [round(one, 4) for one in (timing.ratio, timing.low, timing.high)]
    return times


def fitted(name: str, task: str, times: Mapping[str, Sequence[float]]) -> dict[int, float]:
    """The time at every budget that the plan can reach, as a line in its operations."""
    known = [operations(name, int(keep), task) for keep in times]
    line = linear_regression(known, [values[0] for values in times.values()])
    found: dict[int, float] = {}
    for keep in range(8, PATCHES + 1):
        try:
            found[keep] = line.intercept + line.slope * operations(name, keep, task)
        except BudgetError:  # too few for the sites of its schedule
            continue
    return found


def equal_time(times: Mapping[str, Mapping[str, Sequence[float]]], task: str) -> dict[str, Any]:
    """The budgets of each recipe at the two targets, by the rule; one that is always too slow has none.

    Raises:
        ValueError: tome is faster than a target at every budget.
    """
    lines = {name: fitted(name, task, own) for name, own in times.items()}
    targets = [lines["evoprune"][keep] for keep in BUDGETS[task]]
    budgets: dict[str, Any] = {"evoprune": list(BUDGETS[task])}
    for name, line in lines.items():
        if name == "tome":
            found = [min((k for k in line if line[k] >= target), default=0) for target in targets]
        else:
            found = [max((k for k in line if line[k] <= target), default=0) for target in targets]
        if name != "evoprune" and all(found):
            budgets[name] = found
    if "tome" not in budgets:
        raise ValueError(f"tome on {task} is faster than {max(targets)} at every budget")
    return {"targets": targets, "budgets": budgets}


def candidates(at: Mapping[str, Any]) -> list[str]:
    """The candidates that are fast enough on a task at some budget."""
    return [name for name in CANDIDATES if name in at["budgets"]]


def compared(
    scores: Callable[[Sequence[Job]], Tensor], names: Sequence[str], at: Mapping[str, Any]
) -> dict[str, dict[str, Tensor]]:
    """Differences `[s]` of the score to each rival, by name and rival.

    Args:
        scores: from jobs to the score of each sample, `[s]`.
        names: of candidates and controls.
        at: what `equal_time` returned; a control has the budgets of `evoprune`.
    """
    budgets = at["budgets"]
    found = {
        name: scores([job(name, keep) for keep in budgets.get(name, budgets["evoprune"])])
        for name in (*RIVALS, *names)
    }
    return {
        name: {rival: found[name] - found[rival] for rival in RIVALS if rival != name}
        for name in names
    }


def in_file(half: str, task: str) -> Callable[[Sequence[Job]], Tensor]:
    """The scores that are recorded for a task, from jobs to `[s]`."""
    rows = recorded(half)
    return lambda jobs: mean_scores([rows[task, attached(one)] for one in jobs])


def timed_at(task: str, photographs: Path | None, rounds: int) -> dict[str, Any]:
    """Measure the times of a task, and find the budgets at equal time; both are kept in a file."""
    known = json.loads(TIMES.read_text()) if TIMES.exists() else {}
    if task not in known:
        subject = subject_of(task, "choosing", photographs, few=True)
        times = timed(subject, (*RIVALS, *CANDIDATES), rounds)
        known[task] = {"rounds": rounds, "threads": 1, "times": times, **equal_time(times, task)}
        TIMES.write_text(json.dumps(known, indent=1, allow_nan=False) + "\n")
    return known[task]


def main() -> int:
    parser = argparse.ArgumentParser(description="Past the paper; see the file's head")
    parser.add_argument("tasks", nargs="*", help="default: all three")
    parser.add_argument("--photographs", type=Path, help="folder; dense needs it")
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for task in given.tasks or BUDGETS:
        at = timed_at(task, given.photographs, given.rounds)
        subject = subject_of(task, "held-out", given.photographs)
        measured = Measured(subject, file_of("held-out"), command())
        for name, own in compared(measured.scores, candidates(at), at).items():
            for rival, values in own.items():
                print(
                    f"{task}: {name} - {rival}: {values.mean():+.4f}, {errors(values):+.1f} errors"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
