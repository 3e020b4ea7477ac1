"""`tune`: the recipe, with options, that keeps most of what a model says at a given time or token count.

The judge needs no labels: a candidate is scored by how near the outputs are to the bare model's (see
`unlabelled`). Successive halving: all candidates see a few images, the better half sees twice as many, and
so on; controls are never sorted out, so that a winner is always seen next to them. For a target time, each
candidate gets the most tokens with which it was measured to be fast enough, and those that are left in the
end are measured again, longer.

The subject is a vision model and images (`unlabelled`), or a vision-language model, prompts and images
(`answers`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tokenzoo._core.quoting import quote
from tokenzoo.errors import BadArgumentError, TokenzooError
from tokenzoo.evaluation.candidates import Candidate, Search, ready_recipes
from tokenzoo.evaluation.statistics import Difference, difference
from tokenzoo.evaluation.sweep import attach, patch_tokens
from tokenzoo.evaluation.target import Target
from tokenzoo.evaluation.task import Outcome, Subject, agreement
from tokenzoo.recipes.controls import CONTROLS, CONTROLS_OF_CLIPS
from tokenzoo.tools.benchmark.candidates import copy_of

# Options that matter, by recipe; every other recipe runs with its defaults.
VARIANTS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "evoprune": (
        {},
        {"ctr": 0.1},
        {"stride": 4},
        {"lam": 0.0, "stride": 4},
        {"lam": 0.0, "ctr": 0.0},
    ),
}
FIRST = 8  # images of the first rung
MARGIN = 0.05  # share of what the best gains over the best control that a faster winner may lose


@dataclass(frozen=True)
class Tuned:
    """The result.

    Attributes:
        finalists: the candidates that saw all images, the best first.
        dropped: the others, the best first.
        refused: why a recipe has no candidate, by its name.
        winner: the most alike, or the fastest of those that are shown to lose no more than `MARGIN` against
            it; a control only if the most alike is one.
        against: the winner's paired difference to the best control.
    """

    finalists: Sequence[Candidate]
    dropped: Sequence[Candidate]
    refused: Mapping[str, str]
    winner: Candidate
    against: Difference | None

    @property
    def front(self) -> list[Candidate]:
        """The Pareto front, the fastest first: no other finalist is both faster and better."""
        found: list[Candidate] = []
        for one in sorted(self.finalists, key=lambda other: (other.time[0], -other.mean)):
            if not found or one.mean > found[-1].mean:
                found.append(one)
        return found


Tell = Callable[[str], object]


def tune(
    subject: Subject,
    target: Target,
    recipes: Sequence[str] | None = None,
    *,
    rounds: int = 5,
    tell: Tell = lambda text: None,
) -> Tuned:
    """Find the recipe that keeps most at the target.

    Args:
        subject: the model and what it is shown, see `unlabelled` and `answers`.
        target: time or tokens.
        recipes: names; None: all but those that have to be trained. The controls always run too.
        rounds: of the timing.
        tell: receives what is being done, for a progress bar.

    Raises:
        BadArgumentError: no recipe meets the target on this model; says how near they come.
    """
    controls = (*CONTROLS, *CONTROLS_OF_CLIPS) if subject.videos else CONTROLS
    names = list(dict.fromkeys([*(recipes or ready_recipes()), *controls]))
    refused: dict[str, str] = {}
    found: list[Candidate] = []
    search = Search(subject, copy_of(subject.model), target, patch_tokens(subject), rounds)
    for name in names:
        for options in VARIANTS.get(name, ({},)):
            tell(f"time of {name}")
            try:
                found.append(search.candidate(name, options))
            except TokenzooError as error:
                refused[name] = str(error)
    if all(one.control for one in found):
        raise _nothing_left(subject, refused)
    with torch.inference_mode():
        bare = subject.score(subject.model, range(subject.samples), "bare")
    left, dropped = _halved(subject, found, bare, refused, tell)
    left = list(_again(search, left, bare, refused, tell))
    if all(one.control for one in left):
        raise _nothing_left(subject, refused)
    left.sort(key=lambda one: -one.mean)
    dropped.sort(key=lambda one: -one.mean)
    # A recipe that meets the target with some of its options is not refused.
    there = {one.job.recipe for one in (*left, *dropped)}
    refused = {name: why for name, why in refused.items() if name not in there}
    winner = _winner(left)
    control = next((one for one in left if one.control and one is not winner), None)
    against = None if control is None else difference(winner.scores, control.scores)
    return Tuned(left, dropped, refused, winner, against)


def _again(
    search: Search,
    finalists: Sequence[Candidate],
    bare: Outcome,
    refused: dict[str, str],
    tell: Tell,
) -> Iterator[Candidate]:
    """Time the finalists with more rounds, and score those that have other tokens then.

    One that does not meet the target after all goes to `refused`.
    """
    for one in finalists:
        tell(f"time of {one.job.recipe} again")
        try:
            found = search.again(one)
            if not found.scores:
                found = _scored(search.subject, found, range(search.subject.samples), bare)
            yield found
        except TokenzooError as error:
            refused[one.job.recipe] = str(error)


def _winner(ranked: Sequence[Candidate]) -> Candidate:
    """The fastest of those that are not inferior to the most alike (paired, 95 %), which is one of them.

    That two cannot be told apart on a few images does not make them equal. So a faster one must be shown to
    lose no more than a margin: `MARGIN` of the distance from the most alike to the best control.
    """
    best = ranked[0]
    control = next((one.mean for one in ranked if one.control), best.mean)
    fits = [
        one
        for one in ranked
        if one.control == best.control
        and difference(best.scores, one.scores).high <= MARGIN * (best.mean - control)
    ]
    return min(fits, key=lambda one: one.time[0])


def _nothing_left(subject: Subject, refused: Mapping[str, str]) -> BadArgumentError:
    reasons = "; ".join(f"{name}: {quote(why)}" for name, why in list(refused.items())[:3])
    return BadArgumentError(f"no recipe meets the target on {subject.model_name}: {reasons}")


def _halved(
    subject: Subject,
    candidates: Sequence[Candidate],
    bare: Outcome,
    refused: dict[str, str],
    tell: Tell,
) -> tuple[list[Candidate], list[Candidate]]:
    """Score candidates on more and more images; return those that saw all, and the others.

    One whose outputs cannot be compared with the bare model's goes to `refused`.
    """
    left, dropped = list(candidates), list[Candidate]()
    for seen, more in rungs(subject.samples):
        shown: list[Candidate] = []
        for one in left:
            tell(f"{one.job.recipe} on {more - seen} samples")
            try:
                shown.append(_scored(subject, one, range(seen, more), bare))
            except TokenzooError as error:
                refused[one.job.recipe] = str(error)
        ranked = sorted(shown, key=lambda one: -one.mean)
        methods = [one for one in ranked if not one.control]
        half = methods if more == subject.samples else methods[: max((len(methods) + 1) // 2, 2)]
        left = [one for one in ranked if one.control or one in half]
        dropped += [one for one in ranked if one not in left]
    return left, dropped


def rungs(samples: int) -> Iterator[tuple[int, int]]:
    """Yield the images of each rung, from and to: 8, then as many more as were seen, to the last."""
    seen = 0
    while seen < samples:
        more = min(max(2 * seen, FIRST), samples)
        if samples - more < FIRST:  # no rung of a few images at the end
            more = samples
        yield seen, more
        seen = more


def _scored(subject: Subject, one: Candidate, which: range, bare: Outcome) -> Candidate:
    with attach(one.job, subject), torch.inference_mode():
        outcome = subject.score(subject.model, which, one.job.key(subject).attached)
    scores = next(iter(outcome.scores.values()))
    answers = None if bare.answers is None else bare.answers[which.start : which.stop]
    same = agreement(outcome, replace(bare, answers=answers))
    return replace(
        one,
        scores=(*one.scores, *(float(score) for score in scores)),
        agreement=(*one.agreement, *(float(hit) for hit in (same if same is not None else ()))),
    )
