"""Who takes part in a run: a name, and a function that makes a copy of the bare model faster.

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
        prepare: changes the model that it is given, in place. It returns what `attach` returns, from whose
            plan the floors come; or None, of code that is not ours. It is given the clock, too: whoever
            calls that before and after each selection has the time of the selections measured.
        keep: the budget, for the table; None: no budget.
        floor: without a plan: the share of the encoder's operations that is left, where it is known.

    Raises:
        BadArgumentError: a name that is taken by the bare model, or a number that makes no sense.
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
                f"prepare={self.prepare!r}; it is a function of a model and of the clock"
            )
        if self.keep is not None:
            resolve_keep(self.keep, 1)
        if self.floor is not None:
            check_positive("floor", self.floor)


def attaching(zoo: Method) -> Prepare:
    """The function of a candidate that attaches a recipe."""

    def prepare(model: Any, tick: Tick) -> Attached:
        return attach(zoo.recipe, model, clock=tick)

    return prepare


def copy_of(model: nn.Module) -> Any:
    """A model of its own with the same weights: nothing but these is shared."""
    return deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def check_candidates(candidates: Sequence[Candidate]) -> None:
    """Raise unless each can be told from the others.

    Raises:
        BadArgumentError: no candidate, or two with the same name and budget.
    """
    check_count("number of candidates", len(candidates))
    names = [(one.name, type(one.keep), one.keep) for one in candidates]
    double = [name for name in names if names.count(name) > 1]
    if double:
        raise BadArgumentError(
            f"{double[0][0]!r} is there twice with keep={double[0][2]!r}: give them two names"
        )
