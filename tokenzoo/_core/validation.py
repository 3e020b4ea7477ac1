"""Checks of arguments, with uniform messages."""

from __future__ import annotations

import math
from types import UnionType
from typing import TypeVar

from tokenzoo._core.kinds import INT_END, Range, limits
from tokenzoo._core.quoting import quote
from tokenzoo.errors import BadArgumentError

_T = TypeVar("_T")


def is_kind(value: object, kinds: type | UnionType) -> bool:
    """Return `isinstance(value, kinds)`: pyright does not report it as unnecessary after an annotation."""
    return isinstance(value, kinds)


def check_count(name: str, value: object, least: int = 1) -> int:
    """Return `value` if it is an int of at least `least` (not a bool).

    Raises:
        BadArgumentError: otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < INT_END:
        raise BadArgumentError(
            f"{name}={quote(value)}; it must be an int >= {least}{limits(value)}"
        )
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_number(name: str, value: float, low: float, high: float) -> float:
    """Return `value` if it is an int or a float in [low, high] (not a bool).

    Raises:
        BadArgumentError: otherwise.
    """
    if not _is_number(value) or not low <= value <= high:
        raise BadArgumentError(
            f"{name}={quote(value)}; it must be a number from {low:g} to {high:g}"
        )
    return value


def check_positive(name: str, value: float, *, zero: bool = False) -> float:
    """Return `value` if it is a finite number > 0 (or >= 0).

    Raises:
        BadArgumentError: otherwise.
    """
    if not _is_number(value) or not Range(0, above=not zero).holds(value):
        sign = ">=" if zero else ">"
        raise BadArgumentError(
            f"{name}={quote(value)}; it must be a finite number {sign} 0{limits(value)}"
        )
    return value


def check_finite(name: str, value: float) -> float:
    """Return `value` if it is a finite number.

    Raises:
        BadArgumentError: otherwise.
    """
    if not _is_number(value) or not Range().holds(value):
        raise BadArgumentError(f"{name}={quote(value)}; it must be a finite number{limits(value)}")
    return value


def check_fraction(name: str, value: float) -> float:
    """Return `value` if it is a number in [0, 1].

    Raises:
        BadArgumentError: otherwise.
    """
    if not _is_number(value) or not 0 <= value <= 1:
        raise BadArgumentError(f"{name}={quote(value)}; it must be a fraction in [0, 1]")
    return value


def check_choice(name: str, value: str, *choices: str) -> str:
    """Return `value` if it is one of the words allowed.

    Raises:
        BadArgumentError: otherwise; names the words.
    """
    if not is_kind(value, str) or value not in choices:
        *some, last = map(repr, choices)
        raise BadArgumentError(f"{name}={quote(value)}; it must be {', '.join(some)} or {last}")
    return value


def check_flag(name: str, value: object) -> bool:
    """Return `value` if it is True or False.

    Raises:
        BadArgumentError: otherwise.
    """
    if not isinstance(value, bool):
        raise BadArgumentError(f"{name}={quote(value)}; it must be True or False")
    return value


def check_kind(name: str, value: object, kind: type[_T]) -> _T:
    """Return `value` if it is an instance of this class.

    Raises:
        BadArgumentError: otherwise.
    """
    if not isinstance(value, kind):
        raise BadArgumentError(f"{name}={quote(value)}; it must be a {kind.__name__}")
    return value


def floor_share(share: float, count: int) -> int:
    """Return a share of a count, rounded down; 0.29 of 100 is 29 despite the rounding of 0.29 * 100."""
    return math.floor(share * count + 1e-9)
