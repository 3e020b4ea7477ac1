"""`tokenzoo check PACKAGE:PART`: test a part against every property of its kind.

The part is an instance, a class or function that returns one without arguments, or a name in
`tokenzoo list`. Exit code 0: every property holds; 1: one is violated, and the message names it, with the
smallest example; 2: nothing could be checked.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from tokenzoo import plugins
from tokenzoo.errors import (
    BadArgumentError,
    MissingDependencyError,
    TokenzooError,
    UnknownNameError,
)

if TYPE_CHECKING:
    from tokenzoo.testing import PropertyViolation

EXAMPLES = 25
BROKEN = 1

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("check")
def run(
    target: Annotated[
        str,
        typer.Argument(
            metavar="PACKAGE:PART",
            help="A part or recipe of an importable module (also in this folder), or a name in "
            "`tokenzoo list`.",
        ),
    ],
    examples: Annotated[
        int, typer.Option(min=1, help="Number of examples for each property.")
    ] = EXAMPLES,
) -> None:
    """Test a part or a recipe against every property of its kind, on the same examples in every run.

    PART is an instance, or a class or function that makes one without arguments.
    """
    kit = _kit()
    subjects = [_made(kit, name, found) for name, found in _found(target)]
    console = Console(highlight=False)
    broken = [error for subject in subjects for error in _held(kit, console, subject, examples)]
    for error in broken:
        console.print(Text(f"\n{error}"), soft_wrap=True)
    raise typer.Exit(BROKEN if broken else 0)


def _kit() -> ModuleType:
    try:
        return importlib.import_module("tokenzoo.testing")
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise MissingDependencyError(
            "the examples are drawn by hypothesis, which is not installed: pip install 'tokenzoo[testing]'"
        ) from error


def _found(target: str) -> Iterator[tuple[str, object]]:
    """Yield each object that the argument names, with its name for messages."""
    module, colon, path = target.partition(":")
    if colon:
        yield target, _attribute(module, path)
        return
    # "mean" is a merger and a schedule, "random" a scorer and a recipe: all of them are checked.
    factories = {kind: plugins.collect(kind) for kind in plugins.KINDS}
    if not any(target in known for known in factories.values()):
        names = sorted({name for known in factories.values() for name in known})
        hint = "; a part that has no name yet is PACKAGE:PART, mypackage.scorers:Energy"
        raise UnknownNameError(plugins.unknown("recipe or part", target, names) + hint)
    for kind, known in factories.items():
        if target in known:
            yield f"{kind[:-1]} {target!r}", known[target]


def _attribute(module: str, path: str) -> object:
    folder = ""  # the current folder, which is not on a script's path
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        raise BadArgumentError(
            f"{module!r} cannot be imported: {type(error).__name__}: {error}. PACKAGE is a module that is "
            "installed or lies in this folder, as in PACKAGE:PART"
        ) from error
    for name in path.split("."):
        if not hasattr(found, name):
            there = [known for known in dir(found) if not known.startswith("_")]
            where = getattr(found, "__name__", module)
            raise UnknownNameError(plugins.unknown(f"part of {where}", name, there))
        found = getattr(found, name)
    return found


def _made(kit: Any, name: str, found: object) -> object:
    """Return the instance to check."""
    try:
        instance = kit.subjects.made(found)
        kit.subjects.kind_of(instance)
    except TokenzooError as error:
        raise BadArgumentError(f"{name}: {error}") from error
    except Exception as error:
        raise BadArgumentError(
            f"{name} cannot be made without arguments: {type(error).__name__}: {error}"
        ) from error
    return instance


def _held(
    kit: Any, console: Console, subject: object, examples: int
) -> Iterator[PropertyViolation]:
    """Print a line for each property, and yield the violations."""
    kind = kit.subjects.kind_of(subject)
    properties = [prop for prop in kit.PROPERTIES.values() if kind in prop.binds]
    console.print(
        Text(f"{subject!r}, {kind}: {len(properties)} properties, {examples} examples each")
    )
    width = max(len(prop.name) for prop in properties)
    for prop in properties:
        try:
            kit.check(subject, prop.name, examples=examples)
            mark = Text("✓", "green")
        except kit.PropertyViolation as error:
            mark = Text("✗", "bold red")
            yield error
        row = Table.grid(Column(), Column(width=width), Column(), padding=(0, 1))
        row.add_row(mark, prop.name, Text(prop.promise, "dim"))
        console.print(row)
