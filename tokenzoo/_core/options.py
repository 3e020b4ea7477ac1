"""The options of parts and recipes, checked when they are made: each is what its annotation says.

`Part` does this for every part, plugins' too; `build` for the functions that make recipes. What an
annotation can say: `tokenzoo._core.kinds`. The default of an option is always allowed. A list in place of
a tuple becomes one.
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
        name: of the field or the argument.
        kind: what it takes; None: its annotation says nothing that could be checked.
        default: its default, if it has one.
        many: whether it stands for several arguments, `*steps` or `**rest`.
    """

    name: str
    kind: Kind | None
    default: object
    many: bool = False

    def check(self, owner: str, value: object) -> None:
        """Raise unless it may have this value.

        Raises:
            BadArgumentError: names the owner, the option, the value, and what is allowed.
        """
        if self.kind is None or value is self.default or self.kind.holds(value):
            return
        raise BadArgumentError(f"{self.kind.complaint(self.name, value)} (an option of {owner})")


_of_classes: WeakKeyDictionary[type, tuple[Option, ...]] = WeakKeyDictionary()


def options_of(owner: type | Callable[..., Any]) -> tuple[Option, ...]:
    """The options of a dataclass (its fields), or of a function (its arguments)."""
    if not isinstance(owner, type):
        return tuple(_arguments(owner))
    if owner not in _of_classes:
        _of_classes[owner] = tuple(_fields(owner))
    return _of_classes[owner]


def check_fields(part: object) -> None:
    """Raise unless each field of a dataclass instance is what its annotation says.

    Raises:
        BadArgumentError: names the first field that is not.
    """
    if not is_dataclass(part):
        return
    for option in options_of(type(part)):
        value = getattr(part, option.name, option.default)
        option.check(type(part).__name__, value)
        if isinstance(value, list) and option.kind is not None and option.kind.is_tuple:
            # Parts are data with a hash.
            object.__setattr__(part, option.name, _tuples(cast("list[object]", value)))


def check_arguments(
    owner: str, function: Callable[..., Any], given: Mapping[str, Any], *several: Any
) -> None:
    """Raise unless arguments are what the annotations of a function say.

    Args:
        owner: whose they are, for the message.
        function: whose annotations count.
        given: by name.
        several: what goes to its `*arguments`.

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
    found: list[tuple[Option, ...]] = []  # read at the first call: then all names are there

    @functools.wraps(function)
    def checked(self: object, *args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError:
            function(self, *args, **kwargs)  # which says what is missing, or too much
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
    """Those of a dataclass that its `__init__` takes."""
    if not is_dataclass(cls):
        return
    for field in fields(cls):
        if not field.init:
            continue
        # Where it was written: the names in its annotation are those of that file.
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
    """Has one annotation, for `typing.get_type_hints`."""

    def __init__(self, annotation: object) -> None:
        self.__annotations__ = {"it": annotation}


def _kind(annotation: object, written: object) -> Kind | None:
    """The rule of an annotation in this class or function; None: there is none, or it cannot be read."""
    if annotation is inspect.Parameter.empty:
        return None
    module = sys.modules.get(getattr(written, "__module__", ""))
    try:
        names = {} if module is None else vars(module)
        hints = typing.get_type_hints(_Annotated(annotation), names, include_extras=True)
        return kind_of(hints["it"])
    except Exception:  # what cannot be read is not checked
        return None


def _tuples(value: object) -> object:
    """Lists as tuples, at every depth."""
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in cast("list[object]", value))
    return value
