"""Checks of the options of parts and recipes against their annotations.

`Part` checks every part when it is made, also those of plugins; `build` checks the functions that make
recipes. `tokenzoo._core.kinds` has the annotations. The default of an option is always allowed. A list is
converted to a tuple where the annotation is a tuple.
"""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

from tokenzoo._core.annotations import Kind, kind_of
from tokenzoo.errors import BadArgumentError


@dataclass(frozen=True)
class Option:
    """One option of a part or a function.

    Attributes:
        name: name of the field or argument.
        kind: the allowed values; None: the annotation cannot be checked.
        default: the default, if there is one.
        many: whether it is `*steps` or `**rest`.
    """

    name: str
    kind: Kind | None
    default: object
    many: bool = False

    def check(self, owner: str, value: object) -> None:
        """Raise unless the value is allowed.

        Raises:
            BadArgumentError: names the owner, the option, the value, and what is allowed.
        """
        if self.kind is None or value is self.default or self.kind.holds(value):
            return
        raise BadArgumentError(f"{self.kind.complaint(self.name, value)} (an option of {owner})")


_of_classes: WeakKeyDictionary[type, tuple[Option, ...]] = WeakKeyDictionary()


def options_of(owner: type | Callable[..., Any]) -> tuple[Option, ...]:
    """Return the options of a dataclass (its fields) or of a function (its arguments)."""
    if not isinstance(owner, type):
        return tuple(_arguments(owner))
    if owner not in _of_classes:
        _of_classes[owner] = tuple(_fields(owner))
    return _of_classes[owner]


def check_fields(part: object) -> None:
    """Raise unless each field of a dataclass instance matches its annotation.

    Raises:
        BadArgumentError: names the first field that is not.
    """
    if not is_dataclass(part):
        return
    for option in options_of(type(part)):
        value = getattr(part, option.name, option.default)
        option.check(type(part).__name__, value)
        if isinstance(value, list) and option.kind is not None and option.kind.is_tuple:
            # Parts are hashable.
            object.__setattr__(part, option.name, _tuples(cast("list[object]", value)))


def check_arguments(
    owner: str, function: Callable[..., Any], given: Mapping[str, Any], *several: Any
) -> None:
    """Raise unless arguments match the annotations of a function.

    Args:
        owner: name of the recipe or part, for messages.
        function: the function with the annotations.
        given: arguments by name.
        several: values of its `*arguments`.

    Raises:
        BadArgumentError: names the first that is not.
    """
    for option in options_of(function):
        values = several if option.many else (given[option.name],) if option.name in given else ()
        for value in values:
            option.check(owner, value)


def check_when_made(cls: type) -> None:
    """Make a class check its options before its own `__post_init__` or `__init__` runs."""
    own = vars(cls)
    if "__post_init__" in own and not hasattr(own["__post_init__"], "__wrapped__"):
        type.__setattr__(cls, "__post_init__", _after_fields(own["__post_init__"]))
    if "__init__" in own and not hasattr(own["__init__"], "__wrapped__"):
        type.__setattr__(cls, "__init__", _after_arguments(own["__init__"]))


def _after_fields(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def checked(self: object, *args: Any, **kwargs: Any) -> None:
        check_fields(self)
        function(self, *args, **kwargs)

    return checked


def _after_arguments(function: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(function)
    found: list[
        tuple[Option, ...]
    ] = []  # read at the first call, when all names of the annotations exist

    @functools.wraps(function)
    def checked(self: object, *args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError:
            function(self, *args, **kwargs)  # raises a TypeError about the arguments
            raise
        if not found:
            found.append(options_of(function))
        for option in found[0]:
            value = bound.arguments.get(option.name, option.default)
            values: Any = value if option.many and option.name in bound.arguments else (value,)
            if isinstance(values, dict):  # **named
                values = cast("dict[str, Any]", values).values()
            for one in values:
                option.check(type(self).__name__, one)
        function(self, *args, **kwargs)

    return checked


def _fields(cls: type) -> Iterator[Option]:
    """Yield the fields of a dataclass that its `__init__` takes."""
    if not is_dataclass(cls):
        return
    for field in fields(cls):
        if not field.init:
            continue
        # The names in an annotation are those of the module of the defining class.
        classes = [
            c
            for c in cls.__mro__
            if vars(c).get("__dataclass_fields__", {}).get(field.name) is field
        ]
        yield Option(field.name, _kind(field.type, classes[-1]), field.default)


def _arguments(function: Callable[..., Any]) -> Iterator[Option]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError, NameError):  # nothing is known of it
        return
    for parameter in parameters:
        many = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        written = inspect.unwrap(function)
        yield Option(parameter.name, _kind(parameter.annotation, written), parameter.default, many)


class _Annotated:
    """An object with one annotation, for `typing.get_type_hints`."""

    def __init__(self, annotation: object) -> None:
        self.__annotations__ = {"it": annotation}


def _kind(annotation: object, written: object) -> Kind | None:
    """Return the rule of an annotation in this class or function; None: it cannot be checked."""
    if annotation is inspect.Parameter.empty:
        return None
    module = sys.modules.get(getattr(written, "__module__", ""))
    try:
        names = {} if module is None else vars(module)
        hints = typing.get_type_hints(_Annotated(annotation), names, include_extras=True)
        return kind_of(hints["it"])
    except Exception:  # an annotation that cannot be evaluated is not checked
        return None


def _tuples(value: object) -> object:
    """Convert lists to tuples, at every depth."""
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in cast("list[object]", value))
    return value
