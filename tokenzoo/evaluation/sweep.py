"""A sweep: each recipe at each budget on one subject, row by row."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from tokenzoo import plugins
from tokenzoo.budget import TokenBudget
from tokenzoo.errors import BadArgumentError, TokenzooError
from tokenzoo.evaluation.results import REFUSED, Key, Row
from tokenzoo.evaluation.task import Outcome, Subject, agreement
from tokenzoo.hooks.handle import Attached
from tokenzoo.hooks.state import joins_frames
from tokenzoo.tools.benchmark.candidates import copy_of
from tokenzoo.tools.timing import interleaved
from tokenzoo.zoo import Method, build

DIGITS = 6  # significant digits of a score in a row
LIBRARIES = ("tokenzoo", "torch", "timm", "transformers")


@dataclass(frozen=True)
class Job:
    """A recipe at a budget.

    Attributes:
        recipe: its name.
        keep: patch tokens, an int is a count and a float a share.
        seed: passed on to a recipe that has a seed.
        options: other options of the recipe.
    """

    recipe: str
    keep: int | float
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def key(self, subject: Subject) -> Key:
        """Return the key of its row."""
        options = json.dumps(dict(self.options), sort_keys=True)
        return Key(subject.task, subject.model_name, self.recipe, self.keep, self.seed, options)

    def method(self) -> Method:
        """Build the recipe.

        Raises:
            TokenzooError: see `tokenzoo.build`.
        """
        seed = {"seed": self.seed} if has_seed(self.recipe) else {}
        return build(self.recipe, keep=self.keep, **seed, **self.options)


def has_seed(recipe: str) -> bool:
    """Whether another seed makes this recipe choose other tokens."""
    return "seed" in signature(plugins.find("recipes", recipe)).parameters


def jobs(recipes: Sequence[str], keeps: Sequence[int | float], seeds: int = 1) -> list[Job]:
    """Return every recipe at every budget; one that has a seed, with `seeds` of them.

    Raises:
        UnknownNameError: there is no such recipe; names the nearest.
    """
    return [
        Job(recipe, keep, seed)
        for keep in keeps
        for recipe in recipes
        for seed in range(seeds if has_seed(recipe) else 1)
    ]


def with_controls(subject: Subject, wanted: Sequence[Job]) -> list[Job]:
    """Put the subject's own controls before jobs: each once at each of their budgets."""
    keeps = {repr(job.keep): job.keep for job in wanted}.values()
    return [*(Job(name, keep) for keep in keeps for name in subject.controls), *wanted]


def run(
    subject: Subject,
    wanted: Sequence[Job],
    *,
    rounds: int = 5,
    done: Container[Key] = (),
) -> Iterator[Row]:
    """Yield the row of the bare model, then that of each job, unless it is done already.

    Args:
        subject: the task, its model and samples.
        wanted: the jobs.
        rounds: of the timing; 0: no time is measured.
        done: keys of rows that exist.
    """
    bare = bare_of(subject)
    if Key(subject.task, subject.model_name) not in done:
        yield bare_row(subject, bare)
    for job in wanted:
        if job.key(subject) not in done:
            yield row_of(subject, job, bare, rounds)


@dataclass(frozen=True, eq=False)
class Bare:
    """What the rows of a subject are relative to.

    Attributes:
        outcome: what the bare model scores.
        twin: a bare copy of the model, which shares its weights.
        patches: patch tokens of an image.
    """

    outcome: Outcome
    twin: Any
    patches: int


def bare_of(subject: Subject) -> Bare:
    """Run the bare model of a subject.

    Raises:
        UnsupportedModelError, AttachError: nothing can be attached to the model.
    """
    label = Key(subject.task, subject.model_name).attached
    with torch.inference_mode():
        outcome = subject.score(subject.model, range(subject.samples), label)
    return Bare(outcome, copy_of(subject.model), patch_tokens(subject))


def bare_row(subject: Subject, bare: Bare) -> Row:
    """Return the row of the bare model."""
    scores = _scores(bare.outcome, bare.outcome)
    key = Key(subject.task, subject.model_name)
    return Row(key, subject.facts, flops=1.0, versions=versions(), **scores)


def row_of(subject: Subject, job: Job, bare: Bare, rounds: int) -> Row:
    """Run one job; a recipe that cannot run on the model gives a row with the reason.

    Args:
        subject: the task.
        job: the recipe and its budget.
        bare: what the row is relative to.
        rounds: of the timing; 0: none.
    """
    key = job.key(subject)
    try:
        if job.recipe in subject.controls:
            return _control_row(subject, job, bare, rounds)
        with attach(job, subject) as attached:
            plan = attached.plan(bare.patches)
            refuse_useless(subject, job.recipe, plan, bare.patches)
            with torch.inference_mode():
                outcome = subject.score(subject.model, range(subject.samples), key.attached)
            time = relative_time(subject, bare.twin, rounds, warmup=0)  # the score was the warm-up
    except TokenzooError as error:
        reason = f"{type(error).__name__}: {error}"
        return Row(key, subject.facts, REFUSED, reason, versions=versions())
    return Row(
        key,
        subject.facts,
        tokens=plan.visual,
        flops=round(plan.flops, 4),
        time=time,
        versions=versions(),
        **_scores(outcome, bare.outcome),
    )


def _control_row(subject: Subject, job: Job, bare: Bare, rounds: int) -> Row:
    """Run one of the subject's own controls: the bare model is shown less."""
    key = job.key(subject)
    control = subject.controls[job.recipe](job.keep)
    fewer = replace(subject, call=control.call)
    with torch.inference_mode():
        outcome = control.score(subject.model, range(subject.samples), key.attached)
    return Row(
        key,
        subject.facts,
        tokens=control.tokens,
        flops=control.flops,
        time=relative_time(fewer, bare.twin, rounds, bare=subject.call, warmup=0),
        versions=versions(),
        **_scores(outcome, bare.outcome),
    )


def patch_tokens(subject: Subject) -> int:
    """Return the patch tokens of an image, as a pass of the model has them.

    Raises:
        UnsupportedModelError, AttachError: nothing can be attached to the model.
    """
    with build("tome", keep=1.0).attach(subject.model) as attached, torch.inference_mode():
        subject.call(subject.model)
        return attached.passes[0].tokens


def refuse_useless(subject: Subject, recipe: str, plan: TokenBudget, patches: int) -> None:
    """Refuse a recipe that removes tokens only where nothing of the model reads them any more.

    Its score would be the bare model's and its time longer, which says nothing about the method.

    Args:
        subject: the model and how it is read.
        recipe: name of the recipe.
        plan: of an image.
        patches: patch tokens of the image.

    Raises:
        BadArgumentError: no operation is saved, and the output has no vector for each patch.
    """
    if plan.flops >= 1 and plan.visual < patches and not subject.per_patch:
        raise BadArgumentError(
            f"{recipe} saves nothing: it removes tokens after the last block, and the output of "
            f"{subject.model_name} has none of them; choose a recipe that works between the blocks"
        )


def attach(job: Job, subject: Subject) -> Attached:
    """Attach the recipe of a job to the subject's model, see `attach_method`."""
    return attach_method(job.method(), subject)


def attach_method(method: Method, subject: Subject) -> Attached:
    """Attach a recipe to the subject's model, as the task wants it.

    A warning that the configured image size is out of reach says nothing here: the subject's images decide,
    and a pass on them, or their plan, raises the error.

    Raises:
        BadArgumentError: a recipe over frames, and no videos.
        TokenzooError: see `Method.attach`.
    """
    over_frames = any(joins_frames(step) for step in method.recipe.steps)
    if over_frames and not subject.videos:
        raise BadArgumentError(
            f"{method.name} works over the frames of a video, and {subject.task} shows images: choose a "
            "recipe that reduces images, or show videos"
        )
    frames = subject.frames if over_frames else None
    with warnings.catch_warnings():
        said = ".*takes images of several sizes"
        warnings.filterwarnings("ignore", message=said, category=UserWarning)
        return method.attach(subject.model, **subject.attach, frames=frames)


def relative_time(
    subject: Subject,
    twin: Any,
    rounds: int,
    *,
    bare: Callable[[Any], object] | None = None,
    warmup: int = 1,
) -> list[float]:
    """Return median and quartiles of the time of a model with a recipe, relative to the bare model.

    Args:
        subject: to whose model the recipe is attached.
        twin: a bare copy of the model, which shares its weights: both run in turn, in the same rounds.
        rounds: of the timing; 0: no time is measured, [].
        bare: the call of the bare model; None: the same as with the recipe.
        warmup: rounds before them, which do not count.
    """
    if rounds == 0:
        return []
    calls: dict[str, Callable[[], object]] = {
        "bare": lambda: (bare or subject.call)(twin),
        "recipe": lambda: subject.call(subject.model),
    }
    with torch.inference_mode():
        timing = interleaved(calls, rounds=rounds, warmup=warmup, baseline="bare")["recipe"]
    return [round(value, 4) for value in (timing.ratio, timing.low, timing.high)]


def _scores(outcome: Outcome, bare: Outcome) -> dict[str, Any]:
    """Return the fields of a row that hold what each sample scored."""
    same = agreement(outcome, bare)
    return {
        "scores": {name: _rounded(values) for name, values in outcome.scores.items()},
        "agreement": [] if same is None else _rounded(same),
    }


def _rounded(values: Tensor) -> list[float]:
    """Return bools as the ints 0 and 1, so that a reader sees that they are hits, and floats rounded."""
    if values.dtype == torch.bool:
        return [int(value) for value in values]
    return [float(f"{float(value):.{DIGITS}g}") for value in values.double()]


@cache  # every row has them, and the lookup reads files
def versions() -> Mapping[str, str]:
    """Return the versions of the libraries that decide the scores, where installed."""
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
