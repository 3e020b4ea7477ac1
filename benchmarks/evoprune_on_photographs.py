"""EvoPrune's open numbers on the trained ViT-S, by the task `dense`: rows as `tokenzoo eval` writes them.

    python benchmarks/evoprune_on_photographs.py FOLDER --out docs/results/evoprune-photographs.jsonl

Each variant changes one number of the recipe, or a few, and is compared with `tome` on the same photographs
(`tokenzoo report` shows the table). The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tokenzoo.evaluation import Job, ResultsFile, TaskOptions, run
from tokenzoo.evaluation.tasks import prepare

VARIANTS: tuple[Mapping[str, Any], ...] = (
    {},
    {"ctr": 0.1},
    {"ctr": 0.0},
    {"lam": 0.0},
    {"lam": 0.0, "ctr": 0.0},
    {"lam": 0.0, "stride": 4},
    {"stride": 4},
    {"features": "keys"},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--keep", type=int, nargs="+", default=[64, 32, 24])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("evoprune-photographs.jsonl"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    subject = prepare("dense", TaskOptions(data=given.photographs))
    jobs = [Job("tome", keep) for keep in given.keep]
    jobs += [Job("evoprune", keep, options=one) for keep in given.keep for one in VARIANTS]
    file = ResultsFile(given.out)
    done = file.check({(subject.task, subject.model_name): subject.facts})
    for row in run(subject, jobs, rounds=given.rounds, done=done):
        file.append(row)
        print(row.key.recipe, row.key.keep, row.key.options, row.time[:1], flush=True)


if __name__ == "__main__":
    main()
