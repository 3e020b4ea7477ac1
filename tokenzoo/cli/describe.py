"""`tokenzoo describe NAME`: a recipe or part in words."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tokenzoo.description import describe

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("describe")
def run(
    name: Annotated[str, typer.Argument(help="Name of a recipe or part: see `tokenzoo list`.")],
) -> None:
    """Describe a recipe or part: function, options, required evidence, guarantees."""
    title, _, body = describe(name).partition("\n")
    console = Console(highlight=False)
    console.print(Text(title, style="bold"))
    # Text, not markup: rich would read shapes like [b, n, c] as tags. The terminal wraps long lines.
    console.print(Text(body.rstrip("\n")), soft_wrap=True)
