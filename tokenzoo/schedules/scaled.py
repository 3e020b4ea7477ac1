"""A schedule that leaves more than the recipe keeps, for a step that comes later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tokenzoo._core.kinds import Range, Words
from tokenzoo.budget import round_half_up
from tokenzoo.parts import Fewest, Schedule


@dataclass(frozen=True)
class Scaled(Schedule):
    """Another schedule, for so many times the tokens that the recipe keeps.

    Args:
        schedule: of a step that is not the last.
        factor: on the recipe's `keep`; the product is rounded (halves up), and at most all tokens.
    """

    schedule: Schedule
    factor: Annotated[float, Range(0, 1.7e308, above=True), Words("a finite number above 0")] = 2.0

    def counts(self, tokens: int, sites: int, keep: int, fewest: Fewest) -> tuple[int, ...]:
        """Return what the schedule returns for that many tokens."""
        wanted = max(1, min(tokens, round_half_up(keep * self.factor)))
        return self.schedule.counts(tokens, sites, wanted, fewest)
