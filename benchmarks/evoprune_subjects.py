"""Trained models, each with two halves of samples: one to choose by, one to report on.

The halves were fixed before anything was measured. `digits` and `collage-vqa` choose on collages of the
digits for validation and report on collages of those for testing: no digit is in both. The photographs of
`dense` are in order of their names: the first half chooses. `linear` (features of CIFAR-10) chooses on
train.parquet and reports on test.parquet. For what a search chose there is a last half, "final": other
collages of the digits for testing, as the held-out ones have been looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from evoprune_variants import HOME, Options, recipe_of
from torch import Tensor

from tokenzoo import build
from tokenzoo.evaluation import Job, Key, ResultsFile, Row, Subject, TaskOptions
from tokenzoo.evaluation.results import OK
from tokenzoo.evaluation.sweep import Bare, row_of
from tokenzoo.evaluation.task import Outcome
from tokenzoo.evaluation.tasks import collage_vqa, digits, prepare, probe
from tokenzoo.zoo import Method

HALVES = {"choosing": "validation", "held-out": "test"}
FINAL = "final"
RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
BUDGETS: Mapping[str, Sequence[int]] = {
    "dense": (64, 32),
    "collage-vqa": (32, 16),
    "digits": (32, 16),
    "linear": (16, 8),  # of 64 patches
}
PHOTOGRAPHS = 48
SAMPLES = {
    "collage-vqa": {"choosing": 40, "held-out": 60, FINAL: 60},
    "digits": {"choosing": 150, "held-out": 300, FINAL: 400},
    "linear": {"choosing": 80, FINAL: 150},  # and twice as many with which it learns
}
PAPER: Options = HOME | {"stride": 1}  # the defaults of the recipe
OF_THE_PENALTY = ("curve", "beta", "density", "k", "tau")  # without an effect where lam is 0
PATCHES = 256  # of an image, in all models but that of `linear`
SEED = 21  # of collages; no other measurement has it, nor the next one, which is that of "final"


def subject_of(
    task: str,
    half: str,
    photographs: Path | None = None,
    cifar: Path | None = None,
    *,
    few: bool = False,
) -> Subject:
    """One half of the samples of a task.

    Args:
        task: "dense", "collage-vqa", "digits" or "linear".
        half: "choosing", "held-out" (`linear` has none) or "final".
        photographs: the folder that `dense` reads.
        cifar: the folder with train.parquet and test.parquet that `linear` reads.
        few: the call that is timed has few images.
    """
    if task == "dense":
        whole = prepare("dense", TaskOptions(data=photographs, samples=PHOTOGRAPHS, quick=few))
        return part_of(whole, "held-out" if half == FINAL else half)
    samples = SAMPLES[task][half]
    seed = SEED + (half == FINAL)
    if task == "linear":
        data = (cifar or Path()) / ("train.parquet" if half == "choosing" else "test.parquet")
        options = TaskOptions(data=data, samples=samples, seed=seed)
        return probe.prepare(task, options)
    split = HALVES.get(half, "test")
    if task == "digits":
        return digits.subject_of(split, samples, seed=seed, batch=10 if few else digits.BATCH)
    batch = 3 if few else collage_vqa.BATCH
    return collage_vqa.subject_of(split, samples, seed=seed, batch=batch)


def part_of(whole: Subject, half: str) -> Subject:
    """The first half of the samples, or the second."""
    middle = whole.samples // 2
    start, stop = (0, middle) if half == "choosing" else (middle, whole.samples)

    def score(model: Any, which: range, label: str) -> Outcome:
        return whole.score(model, range(start + which.start, start + which.stop), label)

    facts = {**whole.facts, "half": half}
    return replace(whole, samples=stop - start, score=score, facts=facts)


@dataclass(frozen=True)
class Variant(Job):
    """EvoPrune with options, and with a split and a schedule by name (`evoprune_variants`)."""

    recipe: str = "evoprune"
    keep: int = 64

    def method(self) -> Method:
        """The recipe, with the parts that the options name."""
        return build(recipe_of(dict(self.options), self.keep))


def variant(options: Options, keep: int) -> Variant:
    """A variant whose key has only the options that differ from the recipe's defaults."""
    own = {name: value for name, value in options.items() if PAPER.get(name) != value}
    if own.get("lam") == 0:  # only the order of the similarities matters, which every curve keeps
        own = {name: value for name, value in own.items() if name not in OF_THE_PENALTY}
    return Variant("evoprune", keep, options=own)


def mean_scores(rows: Sequence[Row]) -> Tensor:
    """The main metric of each sample, `[s]` float64: the mean over the rows."""
    found = [next(iter(row.scores.values())) for row in rows]
    return torch.tensor(found, dtype=torch.float64).mean(0)


def recorded(half: str) -> dict[tuple[str, str], Row]:
    """The rows of a half that are committed, by task and by what was attached (`Key.attached`)."""
    rows = ResultsFile(file_of(half)).rows()
    return {(row.key.task, row.key.attached): row for row in rows if row.status == OK}


def file_of(half: str) -> Path:
    """The file with the rows of a half."""
    return RESULTS / f"evoprune-{half}.jsonl"


def attached(job: Job) -> str:
    """What a row says of a job (`Key.attached`), whatever the task."""
    options = json.dumps(dict(job.options), sort_keys=True)
    return Key("", "", job.recipe, job.keep, job.seed, options).attached


@dataclass(frozen=True)
class Measured:
    """Rows of one subject, measured when they are first asked for, and kept in a file."""

    subject: Subject
    path: Path
    command: str = ""
    patches: int = PATCHES
    rows: dict[Key, Row] = field(default_factory=dict[Key, Row])

    def __post_init__(self) -> None:
        names = (self.subject.task, self.subject.model_name)
        self.rows.update(self._file.check({names: self.subject.facts}))

    @property
    def _file(self) -> ResultsFile:
        return ResultsFile(self.path)

    def row(self, job: Job) -> Row:
        """The row of a job.

        Raises:
            ValueError: the recipe does not run.
        """
        key = job.key(self.subject)
        if key not in self.rows:
            # Rows are compared with each other: what the bare model answers is not needed.
            bare = Bare(Outcome({}), None, self.patches)
            self._keep(row_of(self.subject, job, bare, 0))
            print(key.task, key.recipe, key.keep, key.options, flush=True)
        if self.rows[key].status != OK:
            raise ValueError(f"{key.label} does not run: {self.rows[key].reason}")
        return self.rows[key]

    def scores(self, jobs: Sequence[Job]) -> Tensor:
        """The score of each sample, `[s]` float64: see `mean_scores`."""
        return mean_scores([self.row(job) for job in jobs])

    def _keep(self, row: Row) -> None:
        row = replace(row, command=self.command)
        self._file.append(row)
        self.rows[row.key] = row
