"""A property of parts: its name, the kinds of parts that must have it, and a function that tests a case."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tokenzoo.testing.broken import BrokenError, PropertyViolation, imports

Cases = Literal["examples", "sites", "towers", "runs", "nothing"]


@dataclass(frozen=True)
class Property:
    """One promise. Call it with a subject and a case: nothing happens, or `PropertyViolation` is raised.

    Attributes:
        name: in `PROPERTIES`.
        binds: the kinds of subjects that made this promise; see `tokenzoo.testing.subjects`.
        cases: what it is tried on: `Example`, `Sites`, `Tower`, `Run`, or nothing but the subject itself.
        read: where the promise is written down, as a dotted name.
        function: tries it.
    """

    name: str
    binds: frozenset[str]
    cases: Cases
    read: str
    function: Callable[..., None]

    @property
    def promise(self) -> str:
        """What is promised, in one sentence or two: the first paragraph of the function's docstring."""
        return " ".join((inspect.getdoc(self.function) or "").split("\n\n")[0].split())

    def __call__(self, subject: Any, *case: Any) -> None:
        """Try it on one case.

        Raises:
            PropertyViolation: the promise is not kept there.
        """
        try:
            self.function(subject, *case)
        except PropertyViolation:
            raise
        except BrokenError as broken:
            raise self._broken(subject, case, broken.expected, broken.found) from broken.__cause__
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
            raise self._broken(subject, case, "no error", found) from error

    def _broken(
        self, subject: Any, case: tuple[Any, ...], expected: str, found: str
    ) -> PropertyViolation:
        arguments = ", ".join(map(repr, (subject, *case)))
        names = sorted({"PROPERTIES", *(type(one).__name__ for one in case)})
        if hasattr(subject, "make"):  # a model, which is not a part
            names = sorted({*names, type(subject).__name__})
        lines = [
            *imports(subject),
            f"from tokenzoo.testing import {', '.join(names)}",
            f"prop = PROPERTIES[{self.name!r}]",
            f"prop({arguments})",
        ]
        if "torch." in arguments:
            lines.insert(0, "import torch")
        return PropertyViolation(
            self.name,
            self.promise,
            subject=repr(subject),
            expected=expected,
            found=found,
            example="\n".join(lines),
            read=self.read,
        )


def property_of(
    *binds: str, cases: Cases = "examples", read: str
) -> Callable[[Callable[..., None]], Property]:
    """Make a `Property` of a function whose docstring states it; the arguments are its attributes."""

    def decorate(function: Callable[..., None]) -> Property:
        return Property(function.__name__, frozenset(binds), cases, read, function)

    return decorate
