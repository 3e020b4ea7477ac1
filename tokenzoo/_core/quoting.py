"""Values in messages: as long as anybody reads, whatever was given."""

from __future__ import annotations

import reprlib
from typing import Any

from tokenzoo.errors import shortened

LONGEST = 60
"""Characters of one value in a message."""


class _Short(reprlib.Repr):
    """Python's `repr` of a value, which stops early in large ones."""

    def __init__(self, longest: int) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxstring = self.maxother = self.maxlong = longest
        self.maxtuple = self.maxlist = self.maxdict = self.maxset = 20

    def repr_int(self, x: int, level: int) -> str:
        """Python writes no int of thousands of digits."""
        del level
        return repr(x) if abs(x) < 10**40 else f"an int of {x.bit_length()} bits"

    def repr_str(self, x: str, level: int) -> str:
        """As Python writes it, or its beginning."""
        del level
        return repr(x) if len(x) <= self.maxstring else f"{x[: self.maxstring]!r}..."


def quote(value: Any, longest: int = LONGEST) -> str:
    """The value as Python writes it, or its beginning if that is long: at most about `longest` characters.

    An object whose own `repr` fails is named by its class.
    """
    return shortened(_Short(longest).repr(value), longest)
