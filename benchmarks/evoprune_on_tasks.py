"""EvoPrune's open numbers on two more trained models, by the tasks `dense` and `collage-vqa`.

    python benchmarks/evoprune_on_tasks.py choose dense --photographs FOLDER
    python benchmarks/evoprune_on_tasks.py report dense --photographs FOLDER
    python benchmarks/evoprune_on_tasks.py choose collage-vqa
    python benchmarks/evoprune_on_tasks.py report collage-vqa
    python benchmarks/evoprune_task_tables.py       # the tables of docs/evoprune.md

`choose` applies the rule of `ablate_evoprune.py` to the choosing half of the samples
(`evoprune_subjects.py`). A sample's score is the mean of the task's main metric over 64 and 32 of 256
tokens: the cosine of the features (`dense`), the share of eight answers that are right (`collage-vqa`).
There are few samples, so the bound is Student's and not the normal one. `report` measures Table 3 and
Figure 4 of the paper, around the paper's numbers, on the held-out half. A command goes on where it was
stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch
from ablate_evoprune import choose
from collage_runs import rounded
from evoprune_subjects import BUDGETS, PAPER, RESULTS, Measured, file_of, subject_of, variant
from evoprune_variants import ALTERNATIVES, FIGURE_4, TABLE_3, Options
from scipy.stats import t as student
from torch import Tensor

from tokenzoo.evaluation import Job

TRIED = ALTERNATIVES | {"stride": [{"stride": 4}]}
SITES = {
    "dense": 12,
    "collage-vqa": 8,
}  # blocks that are read, of which half are `First` and `Last`
PARTS = ("choose", "report")
HALF_OF = {"choose": "choosing", "report": "held-out"}


def bound(comparisons: int, samples: int) -> float:
    """Standard errors that a difference needs for 95 % over so many comparisons, by Student's t."""
    return float(student.ppf(1 - 0.05 / (2 * comparisons), samples - 1))


def chosen_by(measured: Measured) -> dict[str, object]:
    """Apply the rule to one task: what it chooses, and every comparison."""
    subject = measured.subject
    budgets = BUDGETS[subject.task]

    def score(options: Options) -> Tensor:
        return measured.scores([variant(options, keep) for keep in budgets])

    limit = bound(sum(map(len, TRIED.values())), subject.samples)
    choice = choose(score, PAPER, TRIED, limit)
    return {
        "task": subject.task,
        "facts": dict(subject.facts),
        "samples": subject.samples,
        "budgets": list(budgets),
        "home": PAPER,
        "chosen": choice.options,
        "settled": choice.settled,
        "standard_errors_needed": choice.bound,
        "rounds": choice.rounds,
    }


def named(task: str) -> dict[str, Options]:
    """What `report` measures, by name: Table 3 under two schedules, and the schedules."""
    half = SITES[task] // 2
    parts = {name: change for name, change in TABLE_3.items() if "ctr" not in name}
    schedules = {
        name.replace("6", str(half)): {
            option: value.replace("6", str(half)) for option, value in change.items()
        }
        for name, change in FIGURE_4.items()
    }
    return {
        **parts,
        **{f"{name}, mean": change | {"schedule": "mean"} for name, change in parts.items()},
        **schedules,
        "every block but the first": {"every": 1},
        "from the first block on": {"start": 0},
    }


def reported(measured: Measured) -> None:
    """Measure the rows of `named`, and tome and the controls, at each budget."""
    task = measured.subject.task
    for keep in BUDGETS[task]:
        for recipe in ("tome", "random", "uniform", "pool"):
            measured.row(Job(recipe, keep))
        for change in named(task).values():
            measured.row(variant(PAPER | change, keep))


def main() -> int:
    parser = argparse.ArgumentParser(description="EvoPrune on more tasks; see the file's head")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("task", choices=SITES)
    parser.add_argument("--photographs", type=Path, help="folder; dense needs it")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    half = HALF_OF[given.part]
    subject = subject_of(given.task, half, given.photographs)
    measured = Measured(subject, file_of(half), command())
    if given.part == "choose":
        content = {"command": command(), "threads": given.threads, **chosen_by(measured)}
        out = RESULTS / f"evoprune-choose-{given.task}.json"
        out.write_text(json.dumps(rounded(content), indent=1, allow_nan=False) + "\n")
    else:
        reported(measured)
    return 0


def command() -> str:
    """The command as it was typed; of files and folders only the last name."""
    return shlex.join(["python", sys.argv[0], *(Path(word).name for word in sys.argv[1:])])


if __name__ == "__main__":
    sys.exit(main())
