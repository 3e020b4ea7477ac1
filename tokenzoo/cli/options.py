"""Options that several commands share: token counts, lists of names, files to write."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenzoo import plugins
from tokenzoo._core.quoting import quote
from tokenzoo.budget import resolve_keep
from tokenzoo.errors import BadArgumentError
from tokenzoo.recipes.controls import CONTROLS, CONTROLS_OF_CLIPS

_COUNT = re.compile(r"[0-9]+")
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+")


@dataclass(frozen=True)
class KeepOption:
    """How many patch tokens to keep, as it was typed and as `build` takes it.

    Attributes:
        text: what was typed.
        value: an int is a count, a float a fraction.
    """

    text: str
    value: int | float


def parse_keep(text: str) -> KeepOption:
    """Read `64` as a count, `0.25` and `25%` as fractions (`1` is one token, `1.0` and `100%` all).

    Raises:
        BadArgumentError: it is none of these, or nothing would be kept, or more than there is.
    """
    typed = text.strip()
    number = typed.removesuffix("%")
    value: int | float | None = None
    if typed != number and _NUMBER.fullmatch(number):
        value = float(number) / 100
    elif _COUNT.fullmatch(typed) and len(typed) < 20:
        value = int(typed)
    elif _NUMBER.fullmatch(typed):
        value = float(typed)
    try:
        if value is None:
            raise BadArgumentError
        resolve_keep(value, 1)
    except BadArgumentError:
        raise BadArgumentError(
            f"keep {quote(text)}; it must be a count of tokens from 1 on (64), or a fraction above 0 and "
            "up to all of them (0.25 or 25%; 1.0 or 100% is all, 1 is one token)"
        ) from None
    return KeepOption(typed, value)


def parse_keeps(texts: Iterable[str]) -> tuple[KeepOption, ...]:
    """Read keeps from repeated options and comma lists; one that comes again is left out.

    Raises:
        BadArgumentError: see `parse_keep`; or there is none.
    """
    found: dict[tuple[type, int | float], KeepOption] = {}
    for text in split(texts, "keep"):
        keep = parse_keep(text)
        # The type counts: 1 is one token, 1.0 all of them.
        found.setdefault((type(keep.value), keep.value), keep)
    return tuple(found.values())


def split(texts: Iterable[str], what: str) -> tuple[str, ...]:
    """The items of repeated options and comma lists, in order, each once.

    Raises:
        BadArgumentError: an item is empty, or there is none.
    """
    given = list(texts)
    items = [item.strip() for text in given for item in text.split(",")]
    if not items or not all(items):
        raise BadArgumentError(
            f"{what} {','.join(given)!r} has an empty item; separate items with single commas, or repeat "
            "the option"
        )
    return tuple(dict.fromkeys(items))


def is_control(recipe: str) -> bool:
    """Whether a recipe is a control, a baseline for methods.

    Raises:
        UnknownNameError: there is no such recipe; names the nearest.
    """
    plugins.find("recipes", recipe)
    return recipe in (*CONTROLS, *CONTROLS_OF_CLIPS)


def output_file(path: Path, suffixes: Sequence[str]) -> Path:
    """Return the path if it can be written; called before the work begins.

    Raises:
        BadArgumentError: another suffix, a folder that is not there, or a folder in its place.
    """
    if path.suffix.lower() not in suffixes:
        raise BadArgumentError(f"{path} must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise BadArgumentError(f"{path} is a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise BadArgumentError(f"{path}: the folder {path.parent} does not exist; create it first")
    return path
