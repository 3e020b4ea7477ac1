"""Tests of a part against every property of its kind."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import FlakyFailure
from torch import Tensor, nn

from tokenzoo._core.quoting import quote
from tokenzoo._core.validation import is_kind
from tokenzoo.errors import BadArgumentError
from tokenzoo.hooks.attach import find_adapter
from tokenzoo.matchers import Protect, Split
from tokenzoo.parts import (
    Assigner,
    Matcher,
    Merger,
    PairScorer,
    Part,
    Restorer,
    Schedule,
    Scorer,
    Selector,
)
from tokenzoo.recipe import Recipe
from tokenzoo.temporal import Segmenter
from tokenzoo.testing import strategies
from tokenzoo.testing.broken import PropertyViolation
from tokenzoo.testing.example import Example
from tokenzoo.testing.models import Models, runs
from tokenzoo.testing.properties import PROPERTIES
from tokenzoo.testing.property import Property
from tokenzoo.testing.subjects import expect, kind_of, made, recipe_of
from tokenzoo.zoo import Method, build

EXAMPLES = 25


def check_scorer(scorer: Scorer | PairScorer, *, examples: int = EXAMPLES) -> None:
    """Hold a scorer of tokens or of pairs to its properties.

    Args:
        scorer: an instance.
        examples: how many are tried for each property; the same ones in every run.

    Raises:
        PropertyViolation: a promise is not kept; shows the smallest example.
        BadArgumentError: it is no scorer; says which check is for it.
    """
    expect("check_scorer", scorer)
    check(scorer, examples=examples)


def check_matcher(
    matcher: Matcher | Selector | Assigner | Split | Protect | Segmenter,
    *,
    examples: int = EXAMPLES,
) -> None:
    """Hold a matcher, or a part of one, to its properties.

    Parts are selectors, assigners, splits, protections and segmenters.
    See `check_scorer`.
    """
    expect("check_matcher", matcher)
    check(matcher, examples=examples)


def check_merger(merger: Merger | Restorer, *, examples: int = EXAMPLES) -> None:
    """Hold a merger or a restorer to its properties; see `check_scorer`."""
    expect("check_merger", merger)
    check(merger, examples=examples)


def check_schedule(schedule: Schedule, *, examples: int = EXAMPLES) -> None:
    """Hold a schedule to its properties; see `check_scorer`."""
    expect("check_schedule", schedule)
    check(schedule, examples=examples)


def check_recipe(recipe: Recipe | Method | str, *, examples: int = EXAMPLES) -> None:
    """Hold a recipe to its properties: each step at a site, and all of them on a tower.

    Args:
        recipe: a `Recipe`, what `build` returns, or a name.
        examples: see `check_scorer`.

    Raises:
        PropertyViolation: a promise is not kept; shows the smallest example.
        BadArgumentError: it is no recipe; says which check is for it.
        UnknownNameError: no recipe has this name.
    """
    if isinstance(recipe, str):
        recipe = build(recipe)
    subject = recipe.recipe if isinstance(recipe, Method) else recipe
    expect("check_recipe", subject)
    check(subject, examples=examples)


def check_adapter(
    make: Callable[[], nn.Module] | nn.Module,
    *,
    image: Tensor,
    recipe: str | Recipe | Method = "evoprune",
    examples: int = 5,
) -> None:
    """Hold the adapter of a model to its properties, on a tiny model of that kind.

    Args:
        make: returns a fresh model; or one, of which copies are made. Two to four blocks are enough. Give
            its parameters values of about the size that trained ones have: where a LayerScale is 1e-5 or
            a head is zero, no mistake can be seen.
        image: a batch of two or three inputs, of the model's own size.
        recipe: what is attached, with budgets of its own.
        examples: passes that are tried for each property.

    Raises:
        PropertyViolation: a promise is not kept; shows the budget and the images.
        BadArgumentError: there is no model, or no batch.
        UnsupportedModelError: no adapter knows the model: is its plugin installed?
    """
    if isinstance(make, Part | Recipe | Method | str):
        raise BadArgumentError(
            f"check_adapter({make!r}): an adapter is tried on a model; pass a function that makes a model, "
            "and its input: check_adapter(make, image=...). check(...) is for everything else"
        )
    models = Models(make, image, recipe)
    find_adapter(models.model)
    for prop in PROPERTIES.values():
        if "adapter" in prop.binds:
            hold(prop, models, examples=examples)


def check(
    subject: object, *properties: str, examples: int = EXAMPLES, max_tokens: int = 40
) -> None:
    """Hold a part or a recipe to the properties of its kind, whatever that is.

    Args:
        subject: an instance, or a class or function that makes one without arguments.
        properties: names in `PROPERTIES`; none: all that bind its kind.
        examples: how many are tried for each property; the same ones in every run.
        max_tokens: patch tokens of the largest.

    Raises:
        PropertyViolation: a promise is not kept; shows the smallest example.
        BadArgumentError: nothing that can be checked, or a property that does not bind it.
    """
    instance = made(subject)
    kind = kind_of(instance)
    binding = {name: prop for name, prop in PROPERTIES.items() if kind in prop.binds}
    for name in properties:
        if not is_kind(name, str) or name not in binding:
            raise BadArgumentError(
                f"{quote(name)} is not a property of a {kind}; these are: {', '.join(binding)}"
            )
    if kind != "schedule":
        _check_needs(cast("Part | Recipe", instance))
    for name in properties or tuple(binding):
        for bound in _bound(instance, binding[name]):
            hold(binding[name], bound, examples=examples, max_tokens=max_tokens)


def _bound(instance: object, prop: Property) -> list[object]:
    """What a property is tried on: properties of one site take the steps of a recipe one by one."""
    if isinstance(instance, Recipe) and prop.cases == "examples" and len(instance.steps) > 1:
        return [Recipe(step, keep=0.5) for step in instance.steps]
    return [instance]


def _check_needs(instance: Part | Recipe) -> None:
    """Raise if the examples do not show what a part needs."""
    steps = instance.steps if isinstance(instance, Recipe) else recipe_of(instance).steps
    for step in steps:
        shown = Example.drawn().evidence(step.needs).provides
        missing = sorted(step.needs - shown)
        if missing:
            raise BadArgumentError(
                f"{instance!r} needs {', '.join(missing)}, which no site provides; there are "
                f"{', '.join(sorted(shown))}, and those of other layers, keys@-2"
            )


def hold(
    prop: Property, subject: object, *, examples: int = EXAMPLES, max_tokens: int = 40
) -> None:
    """Hold a subject to one property on drawn cases, the same in every run.

    Raises:
        PropertyViolation: shows the smallest case that was found.
    """
    if prop.cases == "nothing":
        prop(_pristine(subject))
        return
    drawn: Any = {
        "examples": strategies.examples(max_tokens=max_tokens),
        "sites": strategies.sites(),
        "towers": strategies.towers(),
        "runs": runs(),
    }[prop.cases]

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
    )
    @given(drawn)
    def on(case: object) -> None:
        prop(_pristine(subject), case)

    try:
        on()
    except (
        FlakyFailure
    ) as flaky:  # it broke the property, and then did not: a state that no copy has
        raise next(
            (e for e in flaky.exceptions if isinstance(e, PropertyViolation)), flaky
        ) from flaky


def _pristine(subject: object) -> object:
    """A copy, so that a part with a state is found as it was given, case after case."""
    if isinstance(subject, Models):
        return subject
    try:
        return deepcopy(subject)
    except Exception:  # then it is asked as it is
        return subject
