"""The error for a violated property, with what the author of a part needs to fix it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, cast

from torch import Tensor

from tokenzoo._core.deprecation import warn_renamed
from tokenzoo.parts import Part
from tokenzoo.recipe import Recipe, Stage, Step


class PropertyViolation(AssertionError):  # noqa: N818 - it is an assertion that failed, not an error of ours
    """A part violates a property: fix the part, and run the example again.

    Attributes:
        property: name of the property, in `tokenzoo.testing.PROPERTIES`.
        expected: the result that would satisfy it.
        found: the actual result.
        example: code of the smallest example found.
    """

    def __init__(
        self,
        prop: str,
        promise: str,
        *,
        subject: str,
        expected: str,
        found: str,
        example: str,
        read: str,
    ) -> None:
        self.property = prop
        self.expected = expected
        self.found = found
        self.example = example
        code = "".join(f"\n    {line}" for line in example.splitlines())
        super().__init__(
            f"{subject} violates the property {prop!r}: {promise}\n"
            f"  expected: {expected}\n"
            f"  found: {found}\n"
            f"  smallest example:{code}\n"
            f'  read: docs/testing.md, "{prop}"; {read}'
        )

    @property
    def law(self) -> str:
        """Return `property`, under its old name."""
        warn_renamed("PropertyViolation.law", "PropertyViolation.property", stacklevel=3)
        return self.property


class BrokenError(Exception):
    """What a property's function raises; the property adds its name, the subject and the example."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(expected, found)
        self.expected = expected
        self.found = found


def demand(holds: bool, expected: str, found: object) -> None:
    """Raise unless something holds; a tensor is shown as its numbers."""
    if not holds:
        raise BrokenError(expected, text(found))


def text(value: object) -> str:
    """All the numbers of a tensor, in one line."""
    return str(cast("Any", value).tolist()) if isinstance(value, Tensor) else str(value)


def imports(subject: object) -> list[str]:
    """The import statements that the repr of a part or a recipe needs.

    A class inside a function, or of a script, cannot be imported: it is where the reader is.
    """
    names: dict[str, set[str]] = {}
    make: Any = getattr(subject, "make", None)  # of a model
    if make is not None and getattr(make, "__module__", "__main__") != "__main__" and _plain(make):
        names[make.__module__] = {make.__name__}
    for piece in _pieces(subject):
        kind = type(piece)
        if isinstance(piece, Recipe | Step | Stage):
            names.setdefault("tokenzoo", set()).add(kind.__name__)
        elif kind.__module__ != "__main__" and _plain(kind):
            names.setdefault(_home(kind), set()).add(kind.__name__)
    return [f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names)]


def _plain(thing: Any) -> bool:
    """Whether it has a name of its own in its module."""
    name = getattr(thing, "__qualname__", "")
    return bool(name.isidentifier())


def _home(kind: type) -> str:
    """The outermost package that has a class under its own name."""
    parents = kind.__module__.split(".")
    for depth in range(1, len(parents)):
        name = ".".join(parents[:depth])
        if getattr(sys.modules.get(name), kind.__name__, None) is kind:
            return name
    return kind.__module__


def _pieces(value: object) -> Iterator[object]:
    """Everything of ours, or of a plugin, inside a part or a recipe."""
    if isinstance(value, tuple | list):
        for item in cast("tuple[object, ...]", value):
            yield from _pieces(item)
    elif isinstance(value, Part | Recipe | Step | Stage):
        yield value
        if is_dataclass(value):
            for field in fields(value):
                yield from _pieces(getattr(value, field.name))
