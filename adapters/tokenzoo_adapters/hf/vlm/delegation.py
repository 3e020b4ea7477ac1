"""An adapter of a whole model answers as the adapter of the tower inside it, unless it says otherwise."""

from __future__ import annotations

from abc import update_abstractmethods
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar, cast

from tokenzoo.adapter import OLD_NAMES, Adapter
from tokenzoo.parts import Part

T = TypeVar("T", bound=type[Adapter])


def answers_as(tower: str, *, but: tuple[str, ...] = ()) -> Callable[[T], T]:
    """Forward the public members of an adapter that a dataclass does not define to a field of it.

    Args:
        tower: the field, an adapter.
        but: members that keep its defaults.
    """

    def forward(kind: T) -> T:
        mro = kind.__mro__
        own = {name for base in mro[: mro.index(Adapter)] for name in vars(base)}
        own |= {field.name for field in fields(cast("Any", kind))}
        for name in set(dir(Adapter)) - set(dir(Part)) - own - set(OLD_NAMES) - set(but):
            if not name.startswith("_"):
                setattr(kind, name, _of(tower, name))
        return update_abstractmethods(kind)

    return forward


def _of(tower: str, name: str) -> property:
    # A Python function: torch.compile does not trace operator.attrgetter.
    return property(lambda adapter: getattr(getattr(adapter, tower), name))
