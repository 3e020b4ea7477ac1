"""Values in messages, shortened."""

from __future__ import annotations

import reprlib
from typing import Any

from tokenzoo.errors import shortened

LONGEST = 60
"""Maximal number of characters of one value in a message."""


class _Short(reprlib.Repr):
    """Python's `repr`, shortened for large values."""

    def __init__(self, longest: int) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxstring = self.maxother = self.maxlong = longest
        self.maxtuple = self.maxlist = self.maxdict = self.maxset = 20

    def repr_int(self, x: int, level: int) -> str:
        """Describe an int of many digits, which Python refuses to convert to text."""
        del level
        return repr(x) if abs(x) < 10**40 else f"an int of {x.bit_length()} bits"

    def repr_str(self, x: str, level: int) -> str:
        """Return the `repr` of a str, or of its beginning."""
        del level
        return repr(x) if len(x) <= self.maxstring else f"{x[: self.maxstring]!r}..."


def quote(value: Any, longest: int = LONGEST) -> str:
    """Return the `repr` of a value, shortened to about `longest` characters.

    An object whose `repr` raises is named by its class.
    """
    return shortened(_Short(longest).repr(value), longest)
