"""`tokenzoo list [KIND]`: what there is, each with its first sentence; of the recipes those that fit."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokenzoo import plugins
from tokenzoo.cli.list_filters import Wanted, wanted
from tokenzoo.cli.options import is_control
from tokenzoo.description import required_options
from tokenzoo.errors import BadArgumentError, UnknownNameError
from tokenzoo.zoo import list_adapters

KINDS = ("recipes", *(kind for kind in plugins.KINDS if kind != "recipes"), "adapters")
NONE = 1  # exit code where no recipe fits

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("list")
def run(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(KINDS)}.")] = "recipes",
    stage: Annotated[
        str | None,
        typer.Option(help="Recipes with a step at this stage: block, features, llm, ..."),
    ] = None,
    needs_no: Annotated[
        list[str] | None,
        typer.Option(help="Recipes that do not need this evidence: cls, text, grid, keys, ..."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Recipes that work on this model: a name as for doctor, or qwen2_vl."),
    ] = None,
) -> None:
    """List what is installed, plugins' included; `tokenzoo describe NAME` says more.

    The options choose among the recipes with their defaults; none that fits: exit code 1.
    """
    if kind not in KINDS:
        raise UnknownNameError(plugins.unknown("kind", kind, list(KINDS)))
    filters = wanted(stage, needs_no or [], model)
    if filters.asks and kind != "recipes":
        raise BadArgumentError(
            f"--stage, --needs-no and --model filter recipes only; leave them out with {kind!r}"
        )
    console = Console(highlight=False)
    if kind == "adapters":
        console.print(_table(kind, dict.fromkeys(list_adapters())))
        return
    found = plugins.collect(cast("plugins.Kind", kind))
    if kind != "recipes":
        console.print(_table(kind, found))
        return
    fitting = _fitting(filters, found)
    console.print(_table(kind, fitting) if fitting else "no recipe fits")
    open_ = [name for name, factory in found.items() if required_options(factory)]
    if filters.asks and open_:
        console.print(f"left out, because they want options first: {', '.join(open_)}")
    if not fitting:
        raise typer.Exit(NONE)


def _fitting(
    filters: Wanted, found: Mapping[str, Callable[..., Any]]
) -> dict[str, Callable[..., Any]]:
    """The recipes that fit; without filters all of them."""
    if not filters.asks:
        return dict(found)
    return {
        name: factory
        for name, factory in found.items()
        if not required_options(factory) and filters.fit(plugins.make_recipe(name))
    }


def _table(kind: str, found: Mapping[str, Callable[..., Any] | None]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(kind, no_wrap=True, style="cyan")
    if kind == "recipes":
        table.add_column("works at", no_wrap=True)
    table.add_column("")
    for name, factory in found.items():
        if factory is None:
            table.add_row(Text(name))
            continue
        middle = (Text(_stages(name, factory)),) if kind == "recipes" else ()
        table.add_row(Text(name), *middle, _summary(kind, name, factory))
    return table


def _summary(kind: str, name: str, factory: Callable[..., Any]) -> Text:
    """Return the docstring's first line; that of a control begins with "control"."""
    line = (inspect.getdoc(factory) or "(no docstring)").splitlines()[0]
    if kind == "recipes" and is_control(name):
        return Text.assemble(("control: ", "yellow"), line)
    return Text(line)


def _stages(name: str, factory: Callable[..., Any]) -> str:
    """Return the recipe's stages in order; "?" if it cannot be built without options."""
    if required_options(factory):
        return "?"
    steps = plugins.make_recipe(name).steps
    return ", ".join(dict.fromkeys(step.stage.name for step in steps))
