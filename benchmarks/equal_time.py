"""At which budgets do recipes take the same time? For the search of `evoprune_search.py`.

The time of a recipe at any budget is a line in the operations of its plan, through two budgets that are
timed. It is CPU time of one thread relative to the bare model in the same round, since the machine does
other work too. At equal time a candidate gets the most tokens with which it is not slower than the target,
and a rival the fewest with which it is not faster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import linear_regression
from time import process_time
from typing import Any

import torch

from tokenzoo.errors import BudgetError
from tokenzoo.evaluation import Job, Subject
from tokenzoo.tools.benchmark.candidates import copy_of
from tokenzoo.tools.timing import Timing, in_turn, relative

Times = Mapping[str, Sequence[float]]
"""By budget, as text (the files are JSON): median and quartiles."""
FEWEST = {256: 8, 64: 4}  # patches that are kept at least, by those of an image


@dataclass(frozen=True)
class Tower:
    """Where recipes work: blocks, width, patches of an image, and the budgets that are timed."""

    depth: int
    width: int
    patches: int = 256
    ladder: tuple[int, int] = (32, 96)

    def operations(self, job: Job) -> float:
        """Operations of the blocks by the plan, relative to the bare model's.

        Raises:
            BudgetError: the sites of the schedule cannot remove so many.
        """
        return job.method().plan(self.patches, self.depth, prefix=1, width=self.width).flops


def cpu_times(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """As `interleaved`, by the CPU time of this process: a clock would count the work of others too."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for name in in_turn(list(calls), 1 + rounds):  # the first round is warm-up
        start = process_time()
        calls[name]()
        seconds[name].append(process_time() - start)
    bare = seconds["bare"][1:]
    return {name: relative(own[1:], bare) for name, own in seconds.items()}


def timed(
    subject: Subject, tower: Tower, jobs: Mapping[str, Callable[[int], Job]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Median and quartiles of the time, by name and budget, all in the same rounds.

    Args:
        subject: whose call is timed.
        tower: its ladder.
        jobs: by name, from a budget to a job.
        rounds: after one of warm-up.
    """
    calls: dict[str, Any] = {"bare": lambda: subject.call(subject.model)}
    with ExitStack() as stack:
        for name, job in jobs.items():
            for keep in tower.ladder:
                model = copy_of(subject.model)
                stack.enter_context(job(keep).method().attach(model, **subject.attach))
                calls[f"{name}|{keep}"] = lambda model=model: subject.call(model)
        with torch.inference_mode():
            found = cpu_times(calls, rounds)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in jobs}
    for label, timing in found.items():
        if label != "bare":
            name, _, keep = label.partition("|")
            times[name][keep] = [round(one, 4) for one in (timing.ratio, timing.low, timing.high)]
    return times


def fitted(job: Callable[[int], Job], tower: Tower, times: Times) -> dict[int, float]:
    """The time at every budget that the plan can reach, as a line in its operations."""
    known = [tower.operations(job(int(keep))) for keep in times]
    line = linear_regression(known, [values[0] for values in times.values()])
    found: dict[int, float] = {}
    for keep in range(FEWEST[tower.patches], tower.patches + 1):
        try:
            found[keep] = line.intercept + line.slope * tower.operations(job(keep))
        except BudgetError:  # too few for the sites of its schedule
            continue
    return found


def within(line: Mapping[int, float], targets: Sequence[float]) -> list[int]:
    """The most tokens that are not slower than each target; [] if there is a target without."""
    found = [max((keep for keep in line if line[keep] <= target), default=0) for target in targets]
    return found if all(found) else []


def beyond(line: Mapping[int, float], targets: Sequence[float]) -> list[int]:
    """The fewest tokens that are not faster than each target; all where even these are faster."""
    most = max(line)
    return [
        min((keep for keep in line if line[keep] >= target), default=most) for target in targets
    ]
