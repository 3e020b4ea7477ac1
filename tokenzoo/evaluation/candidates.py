"""The candidates of `tune`: a recipe with options, with the most tokens that meet the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenzoo.budget import TokenBudget
from tokenzoo.errors import BadArgumentError, BudgetError
from tokenzoo.evaluation.largest_share import largest_share
from tokenzoo.evaluation.sweep import Job, attach, attach_method, refuse_useless, relative_time
from tokenzoo.evaluation.target import Target
from tokenzoo.evaluation.task import Subject
from tokenzoo.learned import modules
from tokenzoo.plugins import make_recipe
from tokenzoo.recipes.controls import CONTROLS, CONTROLS_OF_CLIPS
from tokenzoo.zoo import build, list_recipes

MORE = 3  # times as many rounds when a time is measured again


def ready_recipes() -> list[str]:
    """Return the names of all recipes but those whose parts have to be trained first."""
    return [name for name in list_recipes() if not modules(make_recipe(name).steps)]


@dataclass(frozen=True)
class Candidate:
    """A recipe with options and the budget that meets the target.

    Attributes:
        job: recipe, options and tokens.
        budget: the plan.
        time: median and quartiles, relative to the bare model.
        scores: likeness on the samples that it has seen so far: images, or prompts.
        agreement: the same answers as the bare model's; [] without answers.
        share: for a target time, the share that was searched for: of the operations, or of the tokens where
            a language model reads them.
    """

    job: Job
    budget: TokenBudget
    time: Sequence[float]
    scores: tuple[float, ...] = ()
    agreement: tuple[float, ...] = ()
    share: float = 1.0

    @property
    def control(self) -> bool:
        """Whether it is a baseline for methods."""
        return self.job.recipe in (*CONTROLS, *CONTROLS_OF_CLIPS)

    @property
    def mean(self) -> float:
        """The mean likeness."""
        return sum(self.scores) / len(self.scores)

    @property
    def tokens(self) -> int:
        """Patch tokens after the last reduction, in the language model or before it."""
        return self.budget.least


@dataclass(frozen=True, eq=False)
class Search:
    """Searches for the most tokens with which a recipe meets the target.

    Attributes:
        subject: the model and what it is shown.
        twin: a bare copy of the model, which shares its weights.
        target: time or tokens.
        patches: patch tokens of an image.
        rounds: of the timing.
    """

    subject: Subject
    twin: Any
    target: Target
    patches: int
    rounds: int

    def candidate(
        self, name: str, options: Mapping[str, Any], start: float | None = None
    ) -> Candidate:
        """Return the candidate of a recipe.

        Args:
            name: of the recipe.
            options: its own.
            start: the share with which the search for a time begins.

        Raises:
            TokenzooError: it cannot run on the model, or cannot be that fast.
        """
        if self.target.kind == "tokens":
            return self._measured(Job(name, self.target.value, options=options))
        found, nearest = largest_share(
            lambda share: self._timed(name, options, share), float(self.target.value), start
        )
        if found is None:
            raise BadArgumentError(
                f"{name} came down to {nearest:.2f} of the time, not to {self.target.value:g}"
            )
        return found

    def again(self, one: Candidate) -> Candidate:
        """Return a candidate as more rounds of the timing find it: fewer tokens, if it misses the target.

        Of several noisy measurements the search keeps one that meets the target, so its time is likely to
        be too short. The scores are kept if the tokens are.

        Raises:
            TokenzooError: it cannot be that fast.
        """
        if self.target.kind == "tokens":
            return one
        closer = replace(self, rounds=MORE * self.rounds)
        found = closer.candidate(one.job.recipe, one.job.options, one.share)
        if found.job != one.job:
            return found
        return replace(found, scores=one.scores, agreement=one.agreement)

    def _timed(
        self, name: str, options: Mapping[str, Any], share: float
    ) -> tuple[float, Candidate]:
        """Return the time at a share, and the candidate.

        Raises:
            TokenzooError: see `candidate`.
        """

        def at(keep: float) -> Candidate:
            return self._measured(Job(name, keep, options=options))

        if self.subject.read_on:
            found = at(share)
        else:
            # The most tokens whose plan costs no more than this share of the operations.
            with attach_method(build(name, flops=share, **options), self.subject) as attached:
                most = attached.plan(self.patches).least
            found = _first_that_runs(at, most)
        # Where no token is removed a shorter time is noise.
        time = found.time[0] if found.tokens < self.patches else 1.0
        return time, replace(found, share=share)

    def _measured(self, job: Job) -> Candidate:
        with attach(job, self.subject) as attached:
            budget = attached.plan(self.patches)
            refuse_useless(self.subject, job.recipe, budget, self.patches)
            return Candidate(job, budget, relative_time(self.subject, self.twin, self.rounds))


def _first_that_runs(at: Callable[[int], Candidate], most: int) -> Candidate:
    """Return the candidate with that many tokens, or a few less: of a smaller image they are a rectangle.

    Raises:
        TokenzooError: it does not run with three quarters of them either.
    """
    for keep in range(most, most - most // 4, -1):
        try:
            return at(keep)
        except BudgetError:
            continue
    return at(most - most // 4)
