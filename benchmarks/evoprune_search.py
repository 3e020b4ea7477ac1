"""Past the paper: is a recipe of EvoPrune's parts ahead of `evoprune` and `tome` at equal cost?

    python benchmarks/evoprune_search.py two --photographs FOLDER
    python benchmarks/evoprune_search.py choose --photographs FOLDER --cifar FOLDER
    python benchmarks/evoprune_search.py test --photographs FOLDER --cifar FOLDER
    python benchmarks/evoprune_task_tables.py                    # the tables of docs/evoprune.md

THE RULE. The targets are what `evoprune` costs at the two budgets of a task. A candidate gets the most
tokens with which it costs no more, `tome` the fewest with which it costs no less, or all.

- The cost is operations by the plan in `two` and `choose`, which are exact, and time in `test`: see
  `equal_time.py`. Times need a machine that does nothing else; operations leave out what scoring takes.
- A sample's score is the mean over both targets of the main metric.
- `two`: the candidates of the first search, without a choice, on the held-out halves of three tasks. One is
  ahead if all six differences to the rivals are above 0 at 95 %, corrected for the two candidates.
- `choose`, on the choosing halves: each candidate is compared with `evoprune` and with `tome`, paired. Its
  value is the smallest difference in standard errors of its mean. All are compared on `dense`, the six of
  the highest value on `digits` too, the three of the highest value over both on `collage-vqa` and `linear`
  (features of CIFAR-10). The one with the highest value over all four tasks is chosen, and written into
  docs/results/evoprune-search.json.
- `test`, once, on the last halves: the chosen one is timed and compared with both rivals on all four tasks.
  It is ahead if all eight differences are above 0 at 95 %, by Student's t. There is one candidate, and all
  eight must be above 0, so there is nothing to correct; the bound that is corrected for eight comparisons
  (Bonferroni) is reported too. A task on which it is not ahead ends the test.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ablate_evoprune import errors
from collage_runs import rounded
from equal_time import Tower, beyond, fitted, timed, within
from evoprune_on_tasks import bound, command
from evoprune_subjects import BUDGETS as BUDGETS_OF_THE_RULE
from evoprune_subjects import FINAL, PAPER, RESULTS, Measured, file_of, subject_of, variant
from evoprune_variants import Options
from torch import Tensor

from tokenzoo.evaluation import Job

PLAIN: Options = {"lam": 0.0, "ctr": 0.0}  # merge what is alike, and nothing else
CANDIDATES: dict[str, Options] = {
    "plain": PLAIN,
    "every block but the first": PLAIN | {"every": 1},
    "every block": PLAIN | {"schedule": "mean"},
    "every third block": PLAIN | {"every": 3},
    "every other block from the third on": PLAIN | {"start": 2},
    "increasing slowly": PLAIN | {"schedule": "increasing slowly"},
    "equal shares": PLAIN | {"schedule": "geometric"},
    "keys": PLAIN | {"features": "keys"},
    "ranked by received attention": PLAIN | {"rank": "received attention"},
    "protection": {"lam": 0.0, "stride": 4},
    "less protection": {"lam": 0.0, "ctr": 0.1, "stride": 4},
    "less protection, stride 8": {"lam": 0.0, "ctr": 0.1, "stride": 8},
    "penalty by keys": {"ctr": 0.0, "density": "keys"},
}
# With 16 tokens `collage-vqa` has hardly more right than the most common answers would.
BUDGETS = {**BUDGETS_OF_THE_RULE, "collage-vqa": (64, 32)}
RIVALS = ("evoprune", "tome")
TOWERS = {
    "dense": Tower(12, 384),
    "digits": Tower(12, 96),
    "collage-vqa": Tower(8, 384),
    "linear": Tower(12, 384, 64, (8, 24)),
}
TWO = ("plain", "every block but the first")
TWO_ON = ("dense", "digits", "collage-vqa")
GO_ON = {
    "dense": 13,
    "digits": 6,
    "collage-vqa": 3,
    "linear": 3,
}  # candidates, by task, in this order
SEARCH = RESULTS / "evoprune-search.json"
ROUNDS = 8  # of the timing


def job(name: str, keep: int) -> Job:
    """A rival or a candidate, by its name."""
    if name in CANDIDATES:
        return variant(PAPER | CANDIDATES[name], keep)
    return variant(PAPER, keep) if name == "evoprune" else Job(name, keep)


def equal_cost(times: Mapping[str, Mapping[str, Sequence[float]]], task: str) -> dict[str, Any]:
    """The targets of a task, and the budgets of each recipe at them; one that is too slow has []."""
    tower = TOWERS[task]
    lines = {name: fitted(partial(job, name), tower, own) for name, own in times.items()}
    targets = [lines["evoprune"][keep] for keep in BUDGETS[task]]
    budgets = {
        name: beyond(line, targets) if name == "tome" else within(line, targets)
        for name, line in lines.items()
    }
    return {"targets": targets, "budgets": budgets | {"evoprune": list(BUDGETS[task])}}


def compared(
    scores: Callable[[Sequence[Job]], Tensor], names: Iterable[str], at: Mapping[str, Any]
) -> dict[str, dict[str, Tensor]]:
    """Differences `[s]` of the score to each rival, by name and rival; of the names that are fast enough.

    Args:
        scores: from jobs to the score of each sample, `[s]`.
        names: of candidates.
        at: what `equal_cost` returned.
    """
    budgets = {name: own for name, own in at["budgets"].items() if own}

    def found(name: str) -> Tensor:
        return scores([job(name, keep) for keep in budgets[name]])

    rivals = {name: found(name) for name in RIVALS}
    return {
        name: {rival: found(name) - theirs for rival, theirs in rivals.items()}
        for name in names
        if name in budgets
    }


def values(tasks: Mapping[str, Any]) -> dict[str, float]:
    """The smallest difference in standard errors of each candidate that every task has, the best first."""
    there = [set(one["errors"]) for one in tasks.values()]
    found = {
        name: min(error for one in tasks.values() for error in one["errors"][name].values())
        for name in CANDIDATES
        if all(name in one for one in there)
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def measured(
    half: str, task: str, names: Sequence[str], given: argparse.Namespace
) -> dict[str, Any]:
    """Compare the rivals and the named candidates on a task at equal cost."""
    subject = subject_of(task, half, given.photographs, given.cifar, few=True)
    tower = TOWERS[task]
    jobs = {name: partial(job, name) for name in (*RIVALS, *names)}
    timing = half == FINAL
    if timing:
        times = timed(subject, tower, jobs, ROUNDS)
    else:
        times = {
            name: {str(keep): [tower.operations(own(keep))] for keep in tower.ladder}
            for name, own in jobs.items()
        }
    at = equal_cost(times, task)
    rows = Measured(subject, file_of(half), command(), tower.patches)
    differences = compared(rows.scores, names, at)
    return {
        "samples": subject.samples,
        "equal": "time" if timing else "operations",
        "rounds": ROUNDS if timing else 0,
        "threads": 1,
        "times": times,
        **at,
        "differences": each(differences, lambda own: own.mean().item()),
        "errors": each(differences, errors),
    }


def each(
    differences: Mapping[str, Mapping[str, Tensor]], of: Callable[[Tensor], float]
) -> dict[str, dict[str, float]]:
    """A number of each difference."""
    return {
        name: {rival: of(one) for rival, one in own.items()} for name, own in differences.items()
    }


def compare_two(content: dict[str, Any], given: argparse.Namespace) -> None:
    """Compare the candidates of the first search on the held-out halves."""
    part = content.setdefault("two", {"tasks": {}})
    for task in TWO_ON:
        if task not in part["tasks"]:
            part["tasks"][task] = measured("held-out", task, TWO, given)
            write(content)


def choose(content: dict[str, Any], given: argparse.Namespace) -> None:
    """Find the candidate by the rule; what the file has is not measured again."""
    part = content.setdefault("choose", {"tasks": {}})
    tasks: dict[str, Any] = part["tasks"]
    for task, count in GO_ON.items():
        if task not in tasks:
            before = {one: own for one, own in tasks.items() if GO_ON[one] > count}
            names = list(values(before))[:count] if before else list(CANDIDATES)
            tasks[task] = measured("choosing", task, names, given)
            write(content)
    part["values"] = values(tasks)
    part["chosen"] = next(iter(part["values"]))


def put_to_test(content: dict[str, Any], given: argparse.Namespace) -> None:
    """Compare the chosen one with its rivals on the last halves, until it is not ahead."""
    part, name = content.setdefault("test", {"tasks": {}}), content["choose"]["chosen"]
    for task in GO_ON:
        if task not in part["tasks"]:
            part["tasks"][task] = measured(FINAL, task, [name], given)
            write(content)
        at = part["tasks"][task]
        found = at["errors"].get(name, {"": 0.0})
        part["ahead"] = min(found.values()) > bound(1, at["samples"])
        if not part["ahead"]:
            return


def write(content: Mapping[str, Any]) -> None:
    """Keep what is known."""
    SEARCH.write_text(json.dumps(rounded(content), indent=1, allow_nan=False) + "\n")


PARTS = {"two": compare_two, "choose": choose, "test": put_to_test}


def main() -> int:
    parser = argparse.ArgumentParser(description="Past the paper; see the file's head")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--photographs", type=Path, required=True, help="folder, for dense")
    parser.add_argument("--cifar", type=Path, help="folder, for linear; `two` needs none")
    given = parser.parse_args()
    torch.set_num_threads(1)
    content = json.loads(SEARCH.read_text()) if SEARCH.exists() else {}
    PARTS[given.part](content, given)
    content[given.part]["command"] = command()
    write(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
