"""Annotations for the options of parts and recipes: numbers in a range, one of a few words.

    k: Count = 5                                   an int >= 1
    share: Share = 0.25                            a fraction in [0, 1]
    size: Annotated[int, Range(2, 8)] = 4          an int from 2 to 8
    on: Annotated[str, OneOf("x", "keys")] = "x"   'x' or 'keys'

Numbers are finite. Unless a range allows more, the absolute value of an int is below 2 ** 31, and a float
is within the range of float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

INT_END = 2**31
FLOAT_MOST = 3.4e38


@dataclass(frozen=True)
class Range:
    """The numbers that an option takes, as metadata: `Annotated[float, Range(0, 1)]`.

    Attributes:
        low: the smallest number; None: no limit but that the number is finite.
        high: the largest number; None as for `low`. `math.inf` allows infinity.
        above: whether `low` itself is excluded.
    """

    low: float | None = None
    high: float | None = None
    above: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number is in the range."""
        most = INT_END - 1 if isinstance(value, int) else FLOAT_MOST
        low = -most if self.low is None else self.low
        high = most if self.high is None else self.high
        return low <= value <= high and not (self.above and value == low)

    def words(self, noun: str) -> str:
        """Describe the range; the noun is "int" or "number"."""
        if noun == "number" and (self.low, self.high, self.above) == (0, 1, False):
            return "a fraction in [0, 1]"
        if self.low is not None and self.high is not None:
            start = f"above {self.low:g}" if self.above else f"from {self.low:g}"
            return f"{'an int' if noun == 'int' else 'a number'} {start} to {self.high:g}"
        base = "an int" if noun == "int" else "a finite number"
        if self.low is not None:
            return f"{base} {'>' if self.above else '>='} {self.low:g}"
        return base if self.high is None else f"{base} <= {self.high:g}"


@dataclass(frozen=True)
class OneOf:
    """The words that an option takes, as metadata: `Annotated[str, OneOf("x", "keys")]`."""

    choices: tuple[str, ...]

    def __init__(self, *choices: str) -> None:
        object.__setattr__(self, "choices", choices)


@dataclass(frozen=True)
class Words:
    """A description of an option for messages, as metadata, if the types do not suffice.

    Attributes:
        text: the description, after "it is".
        name: name of the option if it is not that of the field (an item of a tuple).
    """

    text: str
    name: str = ""


Count = Annotated[int, Range(1)]
Index = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]


def limits(value: object) -> str:
    """Return what a message adds for a number that is too large; otherwise ""."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if isinstance(value, int):
        return ", and below 2 ** 31 in size" if abs(value) >= INT_END else ""
    return f", and at most {FLOAT_MOST:g} in size" if FLOAT_MOST < abs(value) < math.inf else ""
