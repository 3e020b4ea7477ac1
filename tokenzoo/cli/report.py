"""`tokenzoo report`: a page and tables of the rows that `tokenzoo eval` wrote."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tokenzoo.cli.eval_report import controls_of
from tokenzoo.cli.options import output_file
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation import ResultsFile, Row
from tokenzoo.evaluation.leaderboard import leaderboard
from tokenzoo.evaluation.report import page
from tokenzoo.evaluation.summary import summarize

app = typer.Typer(add_completion=False, rich_markup_mode=None)

# The first bytes of the images that a page may have.
KINDS = {b"\x89PNG\r\n": "png", b"\xff\xd8\xff": "jpeg"}


@app.command("report")
def run_it(
    results: Annotated[
        list[Path], typer.Argument(help="Results files; a row in several counts once.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The page. [default: report.html, without --markdown]"),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="A file for tables of Markdown.")] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="A picture for the page, as `tokenzoo viz` draws them; can be repeated."),
    ] = None,
) -> None:
    """Write one HTML page that needs nothing else, or tables of Markdown, or both.

    Seeds are pooled, recipes are compared on the same samples, and p-values are corrected over each task.
    """
    if out is None and markdown is None:
        out = Path("report.html")
    if out is not None:
        output_file(out, (".html", ".htm"))
    if markdown is not None:
        output_file(markdown, (".md",))
    pictures = {path.name: data_url(path) for path in images or ()}
    rows = read(results)
    found = summarize(rows, controls_of(rows))
    texts = {
        **({} if out is None else {out: page(found, pictures)}),
        **({} if markdown is None else {markdown: leaderboard(found)}),
    }
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
        typer.echo(f"{path}: {len(rows)} rows, {len(found)} tasks")


def read(paths: Sequence[Path]) -> list[Row]:
    """Read the rows of all files.

    Raises:
        BadArgumentError: a file is not there, has no rows, or has a damaged line.
    """
    found: list[Row] = []
    for path in paths:
        if not path.is_file():
            raise BadArgumentError(f"there is no results file {path}; `tokenzoo eval` writes one")
        rows = ResultsFile(path).rows()
        if not rows:
            raise BadArgumentError(f"{path} has no rows; `tokenzoo eval --out {path}` adds them")
        found += rows
    return found


def data_url(path: Path) -> str:
    """Return an image as a URL that holds it.

    Raises:
        BadArgumentError: it cannot be read, or is neither PNG nor JPEG.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadArgumentError(f"the picture {path} cannot be read: {error}") from error
    kind = next((kind for start, kind in KINDS.items() if content.startswith(start)), None)
    if kind is None:
        raise BadArgumentError(f"the picture {path} is neither PNG nor JPEG")
    return f"data:image/{kind};base64,{b64encode(content).decode()}"
