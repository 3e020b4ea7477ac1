"""Hypothesis strategies for parts, schedules and recipes, out of everything that is registered.

A factory is called with what its annotations ask for: a matcher that takes `pairs: PairScorer` is given
one of the registered pair scorers. Arguments with a default keep it. So a plugin's parts are drawn, too,
as soon as they are installed.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial
from typing import Any, Literal

from hypothesis import strategies as st

from tokenzoo import plugins
from tokenzoo.errors import BadArgumentError
from tokenzoo.learned import Gate, SoftMatcher
from tokenzoo.matchers import REST, GridCentres, SameCell, SelectAssign, Split, Then
from tokenzoo.parts import (
    Assigner,
    Matcher,
    Merger,
    PairScorer,
    Part,
    Schedule,
    Scorer,
    Selector,
    needs_of,
    walk,
)
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.temporal import Segmenter
from tokenzoo.testing.strategies import budgets
from tokenzoo.testing.subjects import required_of

_FOUND = {
    Scorer: "scorers",
    PairScorer: "scorers",
    Matcher: "matchers",
    Selector: "matchers",
    Assigner: "matchers",
    Split: "matchers",
    Segmenter: "matchers",
    Merger: "mergers",
    Schedule: "schedules",
    Gate: "scorers",
    SoftMatcher: "matchers",
}


Order = Literal["position", "groups", "selected"]
ORDERS: tuple[Order, ...] = ("position", "groups", "selected")


def parts(kind: type[Part], *, deep: int = 2) -> st.SearchStrategy[Any]:
    """Draw a part of a kind (`Scorer`, `Selector`, `Schedule`, ...) that is registered.

    Args:
        kind: one of the abstract parts.
        deep: how many times parts may be inside parts.
    """
    factories = plugins.collect(_FOUND[kind]).values()  # pyright: ignore[reportArgumentType]
    drawn = [_built(factory, deep) for factory in factories if _makes(factory, kind)]
    found = [strategy for strategy in drawn if strategy is not None]
    return st.one_of(*found) if found else st.nothing()


def _makes(factory: Callable[..., Any], kind: type[Part]) -> bool:
    """Whether a factory makes parts of a kind; a function says so by what it returns."""
    if inspect.isclass(factory):
        return issubclass(factory, kind)
    returned = typing.get_type_hints(factory).get("return")
    return inspect.isclass(returned) and issubclass(returned, kind)


def _built(factory: Callable[..., Any], deep: int) -> st.SearchStrategy[Any] | None:
    """A strategy for what a factory makes; None where it asks for what cannot be drawn."""
    if factory is Then:
        return _thens(deep) if deep else None
    if factory is SelectAssign:
        return _select_assigns(deep) if deep else None
    # Of a dataclass the fields: an inherited one is annotated with the names of another module.
    made = inspect.isclass(factory) and not is_dataclass(factory)
    hints = typing.get_type_hints(factory.__init__ if made else factory)
    arguments: dict[str, st.SearchStrategy[Any]] = {}
    for name in required_of(factory):
        hint = hints.get(name)
        if hint is int:
            arguments[name] = st.integers(1, 4)
        elif hint == tuple[int, ...]:
            arguments[name] = st.lists(st.integers(0, 8), max_size=4).map(tuple)
        elif hint in _FOUND and deep:
            arguments[name] = parts(hint, deep=deep - 1)
        else:
            return None
    if not arguments:
        return st.builds(factory)
    return st.fixed_dictionaries(arguments).map(partial(_made, factory)).filter(_is_made)


def _made(factory: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """What a factory makes of its arguments; None where it refuses how they go together."""
    try:
        return factory(**arguments)
    except BadArgumentError:
        return None


def _is_made(part: object) -> bool:
    return part is not None


@st.composite
def _thens(draw: st.DrawFn, deep: int) -> Then:
    """Selectors one after another; only the first may ask for the whole grid."""
    selector = parts(Selector, deep=deep - 1)
    share = draw(st.integers(0, 3) | st.sampled_from([0.25, 0.5, 1.0]))
    last = selector.filter(lambda part: not needs_of(part) & {"grid", "frames"})
    return Then((share, draw(selector)), (REST, draw(last)))


@st.composite
def _select_assigns(draw: st.DrawFn, deep: int) -> SelectAssign:
    """Any selector with any assigner; a cell is one only around its centre."""
    stay: Selector = draw(parts(Selector, deep=deep))

    def fits(join: Assigner) -> bool:
        cells = any(isinstance(part, SameCell) for part in walk(join))
        if cells and not isinstance(stay, GridCentres):
            return False
        return _made(SelectAssign, {"stay": stay, "join": join}) is not None

    order = draw(st.sampled_from(ORDERS))
    return SelectAssign(stay, draw(parts(Assigner, deep=deep).filter(fits)), order)


def schedules() -> st.SearchStrategy[Schedule]:
    """Draw a schedule that is registered, with small numbers where it takes some."""
    return parts(Schedule)


def _goes_with(matcher: Matcher, merger: Merger) -> bool:
    """Whether a step can have both."""
    try:
        merger.check_matcher(matcher)
    except BadArgumentError:
        return False
    return True


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Draw a well-formed recipe of one step, at the blocks or after them.

    At the blocks any schedule is drawn; after them there is one site. A recipe that needs the grid can
    use it once only, before anything is merged, so it is drawn after the blocks.
    """
    matcher = draw(parts(Matcher))
    merger = draw(parts(Merger).filter(partial(_goes_with, matcher)))
    whole = bool(needs_of((matcher, merger)) & {"grid", "frames"})
    stage = Stage.FEATURES if whole else draw(st.sampled_from([Stage.BLOCK, Stage.FEATURES]))
    once = plugins.find("schedules", "once")()
    schedule = draw(schedules()) if stage is Stage.BLOCK else once
    keep = draw(budgets(40))
    proportional = draw(st.booleans())
    return Recipe(
        Step(stage, schedule, matcher, merger), keep=keep, proportional_attention=proportional
    )
