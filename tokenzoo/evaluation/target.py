"""The target of `tune`: a time relative to the bare model, or a number of tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tokenzoo._core.quoting import quote
from tokenzoo.errors import BadArgumentError


@dataclass(frozen=True)
class Target:
    """What every candidate has to meet.

    Attributes:
        kind: "time" or "tokens".
        value: time relative to the bare model; or patch tokens, an int is a count and a float a share.
    """

    kind: Literal["time", "tokens"]
    value: int | float


def parse_target(text: str) -> Target:
    """Read `0.5x` as half of the bare model's time, `64` as a count of tokens, `0.25` as a share of them.

    Raises:
        BadArgumentError: it is none of these.
    """
    typed = text.strip()
    number = re.fullmatch(r"(\d+|\d*\.\d+)(x?)", typed)
    if number is not None:
        value = float(number[1])
        if number[2] and 0 < value < 1:
            return Target("time", value)
        if not number[2] and number[1].isdigit() and 1 <= value < 2**31:
            return Target("tokens", int(number[1]))
        if not number[2] and 0 < value < 1:
            return Target("tokens", value)
    raise BadArgumentError(
        f"target {quote(text)}; it is a time relative to the bare model (0.5x), a count of tokens (64) or "
        "a share of them (0.25)"
    )
