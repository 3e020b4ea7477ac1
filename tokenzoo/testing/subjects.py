"""Who is checked: the kinds of parts, and the plainest recipe around each of them.

A part alone reduces nothing, so each is looked at inside a recipe of one step (`recipe_of`): a token
scorer as a top-k selection, a merger after a token map that merges all tokens that do not stay.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

from tokenzoo._core.quoting import quote
from tokenzoo.adapter import Adapter
from tokenzoo.budget import resolve_keep
from tokenzoo.errors import BadArgumentError
from tokenzoo.learned import SoftMatcher
from tokenzoo.matchers import (
    Bipartite,
    Drop,
    Nearest,
    Protect,
    SelectAssign,
    Split,
    StaticDynamic,
    Strided,
    TopK,
)
from tokenzoo.mergers import Identity, WeightedMean
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
    walk,
)
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.schedules import Once
from tokenzoo.scorers import Similarity
from tokenzoo.temporal import Segmenter
from tokenzoo.testing.example import Example
from tokenzoo.zoo import Method

Subject = Part | Recipe

KINDS: Mapping[str, type] = {
    "scorer": Scorer,
    "pair scorer": PairScorer,
    "matcher": Matcher,
    "selector": Selector,
    "assigner": Assigner,
    "split": Split,
    "protection": Protect,
    "segmenter": Segmenter,
    "merger": Merger,
    "restorer": Restorer,
    "schedule": Schedule,
    "recipe": Recipe,
}
"""What can be checked, by class; a model with its adapter is the kind "adapter"."""

SCORERS = ("scorer", "pair scorer")
MATCHERS = ("matcher", "selector", "assigner", "split", "protection", "segmenter")

CHECKS: Mapping[str, str] = {
    **dict.fromkeys(SCORERS, "check_scorer"),
    **dict.fromkeys(MATCHERS, "check_matcher"),
    "merger": "check_merger",
    "restorer": "check_merger",
    "schedule": "check_schedule",
    "recipe": "check_recipe",
}
"""The function that checks each kind."""

SITE = (*SCORERS, *MATCHERS, "merger", "recipe")
"""The kinds of what acts at one site, on tensors."""


def kind_of(subject: object) -> str:
    """The kind of a part or a recipe.

    Raises:
        BadArgumentError: it is none; says what is, and what to do with this.
    """
    for kind, known in KINDS.items():
        if isinstance(subject, known):
            return kind
    raise BadArgumentError(f"{_named(subject)} cannot be checked: {_instead(subject)}")


def _named(subject: object) -> str:
    return f"{quote(subject, 1000)}, a {type(subject).__name__},"


def _instead(subject: object) -> str:
    """What to do with an object of another kind."""
    if inspect.isclass(subject):
        return f"it is a class: pass an instance, {subject.__name__}(...)"
    if isinstance(subject, Adapter):
        return (
            "an adapter is tried on its model: check_adapter(make, image=...), where make() returns a "
            "fresh tiny model that the adapter's plugin knows"
        )
    if hasattr(subject, "state_dict"):
        return "a model is tried with its adapter: check_adapter(model, image=...)"
    if isinstance(subject, str):
        return "only recipes are known by name: check_recipe('evoprune')"
    return (
        "checked are recipes, scorers of tokens and pairs, matchers, selectors, assigners, splits, "
        "protections, segmenters, mergers, restorers, schedules, and models with their adapters "
        "(check_adapter)"
    )


def expect(function: str, subject: object) -> str:
    """The kind of a subject that one of the check functions was called with.

    Raises:
        BadArgumentError: another of them is for it; says which.
    """
    kind = kind_of(subject)
    if CHECKS[kind] != function:
        article = "an" if kind[0] in "aeiou" else "a"
        raise BadArgumentError(
            f"{function}({quote(subject, 1000)}): this is {article} {kind}; use {CHECKS[kind]}"
        )
    return kind


def made(subject: object) -> object:
    """The instance: what a class or a factory without required arguments makes, or the thing itself.

    Raises:
        BadArgumentError: it takes arguments.
    """
    if isinstance(subject, Method):
        return subject.recipe
    factory = inspect.isclass(subject) or inspect.isroutine(subject)
    if not factory:
        return subject
    required = required_of(cast("Callable[..., Any]", subject))
    if required:
        name = getattr(subject, "__name__", repr(subject))
        raise BadArgumentError(
            f"{name} takes {', '.join(required)}: pass an instance, {name}({', '.join(required)})"
        )
    return made(cast("Callable[[], object]", subject)())


def required_of(factory: Callable[..., Any]) -> list[str]:
    """The arguments that a factory cannot be called without."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # of some builtins nothing is known
        return []
    return [
        name
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty and parameter.kind not in variadic
    ]


def recipe_of(subject: Subject) -> Recipe:
    """The plainest recipe of one step that uses a part; a recipe is its own.

    Raises:
        BadArgumentError: a kind of part that no such recipe is known for.
    """
    if isinstance(subject, Recipe):
        return subject
    keep, mean = Identity(), WeightedMean()
    cosine = Similarity("x")
    match subject:
        case Matcher():
            parts = subject, mean
        case Merger():
            # Some sum what a matcher of their own assigns, and go with no other.
            own = next((part for part in walk(subject) if isinstance(part, SoftMatcher)), None)
            parts = own or SelectAssign(Strided(), Nearest(cosine)), subject
        case Restorer():
            drop = SelectAssign(Strided(), Drop())
            return Recipe(Step(Stage.BLOCK, Once(), drop, keep, restorer=subject))
        case Scorer():
            parts = SelectAssign(TopK(subject), Drop()), keep
        case PairScorer():
            parts = Bipartite(subject), mean
        case Selector():
            parts = SelectAssign(subject, Drop()), keep
        case Assigner():
            parts = SelectAssign(Strided(), subject), mean
        case Split():
            parts = Bipartite(cosine, split=subject), mean
        case Segmenter():
            parts = StaticDynamic(subject), mean
        case Protect():
            parts = Bipartite(cosine, protect=subject), mean
        case _:
            raise BadArgumentError(
                f"{subject!r} is a {type(subject).__name__}; these properties are for recipes, "
                "scorers of tokens and pairs, selectors, assigners, splits, protections, segmenters, "
                "matchers and mergers"
            )
    return Recipe(Step(Stage.FEATURES, Once(), *parts))


def asked(subject: Subject, example: Example) -> Recipe:
    """The recipe of a part with the example's `keep`, or the least that one step reaches."""
    recipe = recipe_of(subject)
    n = example.patches
    keep = example.keep
    fewest = recipe.steps[0].matcher.min_tokens(n, example.prefix)
    if resolve_keep(keep, n) < fewest:
        keep = fewest
    return Recipe(*recipe.steps, keep=keep, proportional_attention=recipe.proportional_attention)


def needs_all(recipe: Recipe) -> bool:
    """Whether a recipe needs what only all tokens together have."""
    names = {need.partition("@")[0] for need in recipe.needs}
    return not names.isdisjoint({"grid", "frames", "attention"})
