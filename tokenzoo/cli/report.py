"""`tokenzoo report`: a page and tables of the rows that `tokenzoo eval` wrote."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from tokenzoo._core.quoting import quote
from tokenzoo._core.validation import check_count
from tokenzoo.cli.eval_report import controls_of
from tokenzoo.cli.options import output_file
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation import ResultsFile, Row
from tokenzoo.evaluation.leaderboard import leaderboard
from tokenzoo.evaluation.maps import LIMIT, TASKS, Maps, draw, subject_for
from tokenzoo.evaluation.report import page
from tokenzoo.evaluation.report_tables import task_id
from tokenzoo.evaluation.summary import Summary, summarize

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
    maps: Annotated[
        list[str] | None,
        typer.Option(
            help="Draw what was merged in samples of a task: TASK (digits, collage-vqa, documents, dense), "
            "TASK=PATH with the folder of its images, or all; can be repeated."
        ),
    ] = None,
    map_images: Annotated[int, typer.Option(help="Samples that --maps draws of each task.")] = 2,
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
    if maps and out is None:
        raise BadArgumentError(f"--maps {maps[0]} without a page: name it, with -o report.html")
    check_count("map-images", map_images)
    pictures = {path.name: data_url(path) for path in images or ()}
    rows = read(results)
    found = summarize(rows, controls_of(rows))
    drawn = maps_of(found, maps or (), map_images)
    texts = {
        **({} if out is None else {out: page(found, pictures, drawn)}),
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


def maps_of(found: Sequence[Summary], texts: Sequence[str], count: int) -> dict[str, Maps]:
    """Draw the maps that are asked for, by `task_id`, under a progress bar.

    Args:
        found: the tasks of the rows.
        texts: TASK, TASK=PATH or "all".
        count: samples of a task.

    Raises:
        BadArgumentError: see `paths_of`, `subject_for` and `draw`.
        MissingDependencyError: see `subject_for`.
    """
    paths = paths_of([one.task for one in found], texts)
    made: dict[str, Maps] = {}
    if not paths:
        return made
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=None)
        for one in found:
            if one.task in paths:
                room = LIMIT - sum(maps.size for maps in made.values())
                subject = subject_for(one, paths[one.task])
                made[task_id(one)] = draw(
                    one, subject, count, room, lambda text: progress.update(bar, description=text)
                )
    return made


def paths_of(tasks: Sequence[str], texts: Sequence[str]) -> dict[str, Path | None]:
    """Return the tasks that are drawn, each with the folder of its images if that was given.

    Args:
        tasks: of the rows.
        texts: TASK, TASK=PATH, or "all", which is every task whose samples can be drawn.

    Raises:
        BadArgumentError: the rows have no such task.
    """
    found: dict[str, Path | None] = {}
    for text in texts:
        task, equals, path = text.partition("=")
        wanted = TASKS if text == "all" else (task,)
        here = [name for name in tasks if name in wanted]
        if not here:
            raise BadArgumentError(
                f"maps {quote(text)}; it must be TASK, TASK=PATH or all, for {', '.join(TASKS)}; the tasks "
                f"of these rows are {', '.join(tasks)}"
            )
        for name in here:
            found[name] = Path(path) if equals else found.get(name)
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
