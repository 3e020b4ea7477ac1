"""`tokenzoo list [KIND]`: what there is, each with its first sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokenzoo import plugins
from tokenzoo.commands.options import is_control
from tokenzoo.errors import UnknownNameError
from tokenzoo.zoo import list_adapters

KINDS = ("recipes", *(kind for kind in plugins.KINDS if kind != "recipes"), "adapters")

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("list")
def run(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(KINDS)}.")] = "recipes",
) -> None:
    """List what is installed, plugins' included; `tokenzoo describe NAME` says more."""
    if kind not in KINDS:
        raise UnknownNameError(plugins.unknown("kind", kind, list(KINDS)))
    Console(highlight=False).print(_table(kind))


def _table(kind: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(kind, no_wrap=True, style="cyan")
    if kind == "adapters":
        for name in list_adapters():
            table.add_row(name)
        return table
    known = cast("plugins.Kind", kind)
    if kind == "recipes":
        table.add_column("works at", no_wrap=True)
    table.add_column("")
    for name, factory in plugins.collect(known).items():
        middle = (Text(_stages(factory)),) if kind == "recipes" else ()
        table.add_row(Text(name), *middle, _summary(kind, name, factory))
    return table


def _summary(kind: str, name: str, factory: Callable[..., Any]) -> Text:
    """The docstring's first line; a control is called one."""
    line = (inspect.getdoc(factory) or "(no docstring)").splitlines()[0]
    if kind == "recipes" and is_control(name):
        return Text.assemble(("control: ", "yellow"), line)
    return Text(line)


def _stages(factory: Callable[..., Any]) -> str:
    """Where the recipe works, in the data's order; "?" where it cannot be built without options."""
    options = inspect.signature(factory).parameters.values()
    required = [
        p
        for p in options
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if required:
        return "?"
    return ", ".join(step.stage.name for step in factory().steps)
