"""The property of options: a value that cannot work is refused when the part is made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from typing import Any

from tokenzoo._core.options import options_of
from tokenzoo._core.quoting import quote
from tokenzoo.errors import TokenzooError
from tokenzoo.matchers import Drop
from tokenzoo.parts import Part, Restorer, Schedule
from tokenzoo.scorers import Random
from tokenzoo.testing.broken import BrokenError
from tokenzoo.testing.example import Example
from tokenzoo.testing.properties.restorers import brought_back
from tokenzoo.testing.property import property_of
from tokenzoo.testing.subjects import MATCHERS, SCORERS, asked

NUMBERS = (math.nan, math.inf, -math.inf, 1e300, 2**63, -1, 0, 2.5)
OTHERS = (None, True, "a", "", (), [1], object(), Random(), Drop())


@property_of(
    *(*SCORERS, *MATCHERS, "merger", "restorer", "schedule"),
    cases="nothing",
    read="tokenzoo.parts.Part",
)
def options_checked(subject: Part) -> None:
    """Each option is what its annotation says; a value that cannot work is refused when the part is made.

    Tried are numbers that are not finite or too large, words, empty and wrong containers, and other parts.
    A part that takes such a value works with it, or raises an error of ours. Options of a dataclass are
    tried, where their annotations can be read.
    """
    for name, value, part in _made(subject):
        try:
            _run(part)
        except TokenzooError:
            pass
        except Exception as error:
            raise BrokenError(
                f"{name}={quote(value)} to be refused with a BadArgumentError when the part is made",
                f"{type(error).__name__} when it ran: {error}",
            ) from error


def _made(subject: Part) -> Iterator[tuple[str, Any, Part]]:
    """The part with one option changed at a time, as often as that is not refused."""
    if not is_dataclass(subject) or not subject.__dataclass_params__.init:  # type: ignore[attr-defined]
        return
    for option in options_of(type(subject)):
        if option.kind is None:
            continue
        for value in (*NUMBERS, *OTHERS):
            try:
                yield option.name, value, replace(subject, **{option.name: value})
            except TokenzooError:
                pass
            except Exception as error:
                raise BrokenError(
                    f"{option.name}={quote(value)} to be refused with a BadArgumentError",
                    f"{type(error).__name__}: {error}",
                ) from error


def _run(part: Part) -> None:
    if isinstance(part, Schedule):
        part.counts(20, 4, 5, lambda n: (n + 1) // 2)
        return
    example = Example.drawn()
    if isinstance(part, Restorer):
        brought_back(part, example)
        return
    example.reduce(asked(part, example))
