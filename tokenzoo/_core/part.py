"""The base class of all parts, and functions of a part and the parts inside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, cast

from tokenzoo._core.options import check_fields, check_when_made


class Part:
    """The base of all parts: declared needs, and options checked against their annotations."""

    needs: frozenset[str] = frozenset()

    differentiable: bool = False
    """Whether its scores carry gradients (a learned part); by default they are computed without."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check the options of this kind of part before its own `__post_init__` or `__init__` runs."""
        super().__init_subclass__(**kwargs)
        check_when_made(cls)

    def __post_init__(self) -> None:
        """Check the options: see `tokenzoo._core.options`.

        Raises:
            BadArgumentError: an option does not match its annotation.
        """
        check_fields(self)

    def require(self, *names: str) -> None:
        """Declare needs that depend on the options; for `__post_init__` of a frozen dataclass."""
        object.__setattr__(self, "needs", self.needs | set(names))


def walk(part: object) -> Iterator[Part]:
    """Yield a part and all the parts inside it, in the order of their fields."""
    if isinstance(part, Part):
        yield part
    if isinstance(part, tuple | list):
        for item in cast("tuple[object, ...]", part):
            yield from walk(item)
    elif is_dataclass(part) and not isinstance(part, type):
        for field in fields(part):
            yield from walk(getattr(part, field.name))


def needs_of(part: object) -> frozenset[str]:
    """Return the evidence that a part and the parts inside it need."""
    return frozenset[str]().union(*(inner.needs for inner in walk(part)))
