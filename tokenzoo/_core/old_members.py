"""Old names of members of classes: of attributes, overridden methods, and arguments of dataclasses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

from tokenzoo._core.deprecation import warn_renamed

T = TypeVar("T")


class OldName:
    """The old name of a class's attribute or method: reading it warns, and gives what the new one gives.

    It has no `__set__`: a subclass, or a field of a dataclass, may still define the old name (see
    `adopt_old_names`).

    Args:
        new: the new name, an attribute of the same class.
    """

    def __init__(self, new: str) -> None:
        self.new = new

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner = owner
        self.old = name

    def __get__(self, instance: Any, kind: type) -> Any:
        warn_renamed(
            f"{self.owner.__name__}.{self.old}", f"{self.owner.__name__}.{self.new}", stacklevel=3
        )
        if instance is None:
            return getattr(kind, self.new)
        if _first_owner(kind, self.old) is self.owner:
            return getattr(instance, self.new)
        # By super() from a subclass that still defines the old name: what the base class does.
        base = vars(self.owner)[self.new]
        return base.__get__(instance, kind) if hasattr(base, "__get__") else base


def adopt_old_names(cls: type, names: Mapping[str, str]) -> None:
    """Let what a new subclass defines under an old name be found under the new one, with a warning.

    Args:
        cls: the subclass, in `__init_subclass__`.
        names: maps each old name to the new one.
    """
    own = vars(cls)
    for old, new in names.items():
        if (old in own or old in own.get("__annotations__", {})) and new not in own:
            warn_renamed(f"{cls.__name__}.{old}", f"{cls.__name__}.{new}", stacklevel=4)
            setattr(cls, new, _reading(old))


def _reading(name: str) -> property:
    # A Python function: torch.compile does not trace operator.attrgetter.
    return property(lambda owner: getattr(owner, name))


def renamed_arguments(names: Mapping[str, str]) -> Callable[[type[T]], type[T]]:
    """Let a class take keyword arguments by their old names, with a warning.

    Args:
        names: maps each old name to the new one.
    """

    def adopt(cls: type[T]) -> type[T]:
        made: Any = cls
        original = made.__init__

        @wraps(original)
        def init(self: Any, *args: Any, **given: Any) -> None:
            for old, new in names.items():
                if old in given:
                    warn_renamed(f"{cls.__name__}.{old}", f"{cls.__name__}.{new}", stacklevel=3)
                    given[new] = given.pop(old)
            original(self, *args, **given)

        made.__init__ = init
        return cls

    return adopt


def _first_owner(kind: type, name: str) -> type | None:
    """The first class in the order of look-up that defines a name."""
    return next((one for one in kind.__mro__ if name in vars(one)), None)
