"""Candidates of a run: a name, and a function that changes a copy of the bare model.

    Candidate("evoprune", recipe("evoprune", keep=64), keep=64)
    Candidate("third party", patch)            # def patch(model, tick): ...

Every candidate gets a copy of its own, which shares the bare model's weights and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import nn

from tokenzoo._core.validation import check_count, check_positive
from tokenzoo.budget import resolve_keep
from tokenzoo.errors import BadArgumentError
from tokenzoo.hooks.attach import attach
from tokenzoo.hooks.handle import Attached
from tokenzoo.zoo import Method

Tick = Callable[[], None]
"""Called right before a selection of tokens begins, and right after it."""

Prepare = Callable[[Any, Tick], Attached | None]

BARE, AGAIN = "bare", "bare again"


@dataclass(frozen=True)
class Candidate:
    """One row of a table.

    Args:
        name: of the row.
        prepare: changes the model in place. It returns the result of `attach`, whose plan determines the
            floors, or None for third-party code. Its second argument is the clock: call it before and
            after each selection to measure the time of selections.
        keep: the budget, for the table; None: no budget.
        floor: for third-party code: the remaining share of the encoder's operations, if known.

    Raises:
        BadArgumentError: the name is empty or the bare model's, or `keep` or `floor` is out of range.
    """

    name: str
    prepare: Prepare
    keep: int | float | None = None
    floor: float | None = None

    def __post_init__(self) -> None:
        if not self.name or self.name in (BARE, AGAIN):
            raise BadArgumentError(
                f"a candidate called {self.name!r}; {BARE!r} and {AGAIN!r} are the model without one"
            )
        if not callable(self.prepare):
            raise BadArgumentError(
                f"prepare={self.prepare!r}; it must be a function of a model and of the clock"
            )
        if self.keep is not None:
            resolve_keep(self.keep, 1)
        if self.floor is not None:
            check_positive("floor", self.floor)


def attaching(zoo: Method) -> Prepare:
    """Return a `prepare` function that attaches a recipe."""

    def prepare(model: Any, tick: Tick) -> Attached:
        return attach(zoo.recipe, model, clock=tick)

    return prepare


def copy_of(model: nn.Module) -> Any:
    """Copy a model; the copy shares only the parameters."""
    return deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def check_candidates(candidates: Sequence[Candidate]) -> None:
    """Raise unless each candidate has a name and budget of its own.

    Raises:
        BadArgumentError: no candidate, or two with the same name and budget.
    """
    check_count("number of candidates", len(candidates))
    names = [(one.name, type(one.keep), one.keep) for one in candidates]
    double = [name for name in names if names.count(name) > 1]
    if double:
        raise BadArgumentError(
            f"{double[0][0]!r} is there twice with keep={double[0][2]!r}: give each its own name"
        )
