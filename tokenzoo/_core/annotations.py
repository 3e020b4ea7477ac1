"""Rules from annotations: the values that an option takes, and their description in messages.

    k: Count = 5                                   an int >= 1
    curve: Literal["cosine", "exp"] = "cosine"     'cosine' or 'exp'
    scorer: Scorer | None = None                   a Scorer or None
    at: tuple[Share, ...] = (0.5,)                 a tuple, each item a fraction in [0, 1]

A bool is not an int, and an int is a float. Other annotations are not checked.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from tokenzoo._core.kinds import OneOf, Range, Words, limits
from tokenzoo._core.quoting import quote

Inside = Callable[[Any], Iterator[tuple["Kind", Any]]]


def _nothing(value: Any) -> Iterator[tuple[Kind, Any]]:
    del value
    yield from ()


@dataclass(frozen=True)
class Kind:
    """The values that an annotation allows.

    Attributes:
        words: description of the values, after "it is".
        holds: whether a value is allowed.
        number: "int" or "float" if the values are numbers, otherwise "".
        is_tuple: whether tuples are allowed; lists are then allowed, too.
        name: name in messages; "": that of the field.
        inside: the items of a value, each with its own kind; messages name the wrong item.
    """

    words: str
    holds: Callable[[Any], bool]
    number: Literal["", "int", "float"] = ""
    is_tuple: bool = False
    name: str = ""
    inside: Inside = _nothing

    def complaint(self, name: str, value: Any) -> str:
        """Return the message for a value that is not allowed."""
        for kind, item in self.inside(value):
            if not kind.holds(item):
                return kind.complaint(kind.name or name, item)
        return f"{name}={quote(value)}; it must be {self.words}{limits(value)}"


def kind_of(annotation: Any) -> Kind | None:
    """Return the rule of an annotation; None: it cannot be checked."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _annotated(arguments[0], arguments[1:])
    if origin is Literal:
        return _choice(arguments)
    if origin in (Union, UnionType):
        return _union(arguments)
    if origin is tuple:
        return _tuple(arguments)
    return _class(annotation if origin is None else origin)


def _annotated(base: Any, metadata: tuple[Any, ...]) -> Kind | None:
    kind = kind_of(base)
    for rule in metadata:
        if isinstance(rule, Range) and base is int:
            kind = Kind(rule.words("int"), partial(_is_int, rule), "int")
        elif isinstance(rule, Range) and base is float:
            kind = Kind(rule.words("number"), partial(_is_number, rule), "float")
        elif isinstance(rule, OneOf):
            kind = _choice(rule.choices)
        elif isinstance(rule, Words) and kind is not None:
            inside = kind.inside if kind.is_tuple else _nothing
            kind = replace(kind, words=rule.text, name=rule.name, inside=inside)
    return kind


def _choice(choices: tuple[Any, ...]) -> Kind:
    return Kind(_listed([repr(choice) for choice in choices]), partial(_is_one_of, choices))


def _union(members: tuple[Any, ...]) -> Kind | None:
    found = [kind_of(member) for member in members]
    kinds = [kind for kind in found if kind is not None]
    if len(kinds) < len(found):
        return None
    numbers = {kind.number: kind for kind in kinds if kind.number}

    def inside(value: Any) -> Iterator[tuple[Kind, Any]]:
        # If ints and floats have different meanings (a count, a share), each has its own range.
        if len(numbers) == 2 and type(value).__name__ in numbers:
            yield numbers[type(value).__name__], value

    def holds(value: Any) -> bool:
        for kind, number in inside(value):
            return kind.holds(number)
        return any(kind.holds(value) for kind in kinds)

    words = _listed([kind.words for kind in kinds])
    return Kind(words, holds, is_tuple=any(kind.is_tuple for kind in kinds), inside=inside)


def _tuple(arguments: tuple[Any, ...]) -> Kind:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        item = kind_of(arguments[0])
        words = "a tuple" if item is None else f"a tuple, each item {item.words}"
        length = None
        kinds = (item,)
    else:
        kinds = tuple(kind_of(argument) for argument in arguments)
        length = len(kinds)
        described = ["anything" if kind is None else kind.words for kind in kinds]
        words = f"a tuple of {length}: {', '.join(described)}"

    def inside(value: Any) -> Iterator[tuple[Kind, Any]]:
        if fits(value):
            items = cast("Sequence[Any]", value)
            each = kinds * len(items) if length is None else kinds
            yield from ((kind, one) for kind, one in zip(each, items, strict=True) if kind)

    def fits(value: Any) -> bool:
        return isinstance(value, tuple | list) and length in (
            None,
            len(cast("Sequence[Any]", value)),
        )

    def holds(value: Any) -> bool:
        return fits(value) and all(kind.holds(one) for kind, one in inside(value))

    return Kind(words, holds, is_tuple=True, inside=inside)


def _class(annotation: Any) -> Kind | None:
    if annotation in (None, NoneType):
        return Kind("None", lambda value: value is None)
    if annotation is bool:
        return Kind("True or False", lambda value: isinstance(value, bool))
    if annotation is int:
        return Kind("an int", partial(_is_int, Range()), "int")
    if annotation is float:
        return Kind("a finite number", partial(_is_number, Range()), "float")
    unknown = annotation in (Any, object) or getattr(annotation, "_is_protocol", False)
    if unknown or not inspect.isclass(annotation):
        return None
    article = "an" if annotation.__name__[0] in "aeiouAEIOU" else "a"
    return Kind(f"{article} {annotation.__name__}", partial(_is_instance, annotation))


def _is_instance(cls: Any, value: Any) -> bool:
    return isinstance(value, cls)


def _is_int(rule: Range, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and rule.holds(value)


def _is_number(rule: Range, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and rule.holds(value)


def _is_one_of(choices: tuple[Any, ...], value: Any) -> bool:
    # 1, True and 1.0 are equal, but different choices.
    return any(
        isinstance(value, type(choice))
        and isinstance(value, bool) == isinstance(choice, bool)
        and value == choice
        for choice in choices
    )


def _listed(words: Sequence[str]) -> str:
    """Join words as in "a, b or c"."""
    *some, last = words
    return f"{', '.join(some)} or {last}" if some else last
