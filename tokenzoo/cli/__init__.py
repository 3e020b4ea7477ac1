"""The command line: one file a command, imported when called.

    tokenzoo demo                  what each method costs and keeps, on a shipped model and real digits
    tokenzoo list [KIND]           names of recipes, scorers, matchers, mergers, schedules, adapters
    tokenzoo describe NAME         a recipe or part in words
    tokenzoo check PACKAGE:PART    test a part against every property of its kind
    tokenzoo doctor [MODEL]        what is installed and seen; whether a recipe works on a model
    tokenzoo viz IMAGE...          which patches share a token, drawn over photographs or a video
    tokenzoo export MODEL OUT      a model with a recipe on it as an ONNX file, compared with the model
    tokenzoo bench MODEL           time of a whole model's parts, relative to the bare model, and floors
    tokenzoo eval                  what recipes keep of a model's answers, with intervals and controls
    tokenzoo report RESULTS...     a page with plots and tables of what eval measured, or Markdown
    tokenzoo tune MODEL            the recipe that keeps most of what your model says of your images
    tokenzoo train RECIPE          the learned parts of a recipe, or a model with reduction on

Exit codes: 0 done; 2 something that was asked for cannot be done (any `TokenzooError`, and whatever the
command line itself refuses), said in one message on stderr; 1 the answer is no (`doctor`, `check`,
`list`, `export`), or a crash, which is a bug of ours; 130 a training was interrupted, and can go on.
"""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from tokenzoo.errors import TokenzooError

# The file of each command; each has an `app` with that one command.
COMMANDS = {
    "demo": "demo",
    "list": "list_",
    "describe": "describe",
    "check": "check",
    "doctor": "doctor",
    "viz": "viz",
    "export": "export",
    "bench": "bench",
    "eval": "eval",
    "report": "report",
    "tune": "tune",
    "train": "train",
}
FAILED = 2


class _Lazy(TyperGroup):
    """A group that imports a command's file when the command is called, and says our errors plainly."""

    # Any, because the type of a context is click's with an older typer, and typer's own with a newer.
    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order in which the help shows them."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name, or None."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        return get_command(importlib.import_module(f"{__name__}.{COMMANDS[cmd_name]}").app)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error of ours is a message and exit code 2, not a traceback."""
        try:
            return super().invoke(ctx)
        except TokenzooError as error:
            typer.echo(f"tokenzoo: {error}", err=True)
            raise typer.Exit(FAILED) from error


app = typer.Typer(
    name="tokenzoo",
    cls=_Lazy,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


def _say_version(asked: bool) -> None:
    if asked:
        from tokenzoo import __version__

        typer.echo(f"tokenzoo {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_say_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Vision transformers, faster by carrying fewer visual tokens."""
    del version
