"""What options are: numbers in a range, one of a few words. For the annotations of parts and recipes.

    k: Count = 5                                   an int >= 1
    share: Share = 0.25                            a fraction in [0, 1]
    size: Annotated[int, Range(2, 8)] = 4          an int from 2 to 8
    on: Annotated[str, OneOf("x", "keys")] = "x"   'x' or 'keys'

Numbers are finite. Ints are below 2 ** 31 in size, and floats are numbers that float32 holds, unless a
range says otherwise.
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
        low: the least; None: there is none, but the number is finite.
        high: the greatest; likewise. `math.inf` allows an infinite number.
        above: whether `low` itself is left out.
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
        """What it takes, in words; the noun is "int" or "number"."""
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
    """How a message says what an option is, as metadata, where the types alone do not.

    Attributes:
        text: after "it is".
        name: of the option, where that is not the name of the field (an item of a tuple).
    """

    text: str
    name: str = ""


Count = Annotated[int, Range(1)]
Index = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]


def limits(value: object) -> str:
    """What a message adds about a number that is too large for most options; "" about all else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if isinstance(value, int):
        return ", and below 2 ** 31 in size" if abs(value) >= INT_END else ""
    return f", and at most {FLOAT_MOST:g} in size" if FLOAT_MOST < abs(value) < math.inf else ""
