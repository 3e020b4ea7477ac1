"""The demo's table, how to read it, and all figures as JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokenzoo import __version__
from tokenzoo.cli.demo_rows import BARE, Row, Score
from tokenzoo.tools.timing import Timing

WIDTH = 80


def show(console: Console, rows: Sequence[Row], noise: Timing, *, images: int, rounds: int) -> None:
    """Print the table and how to read it."""
    # A narrower table would lose figures; a line that the terminal wraps does not.
    console.width = max(console.width, WIDTH)
    problems = list(dict.fromkeys(row.problem for row in rows if row.problem))
    console.print(_table(rows, problems))
    for number, problem in enumerate(problems, 1):
        console.print(Text(f"[{number}] {problem}"))
    console.print()
    for line in _reading(rows, noise, images, rounds):
        console.print(Text(line))


def _table(rows: Sequence[Row], problems: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("recipe", no_wrap=True)
    for heading in ("keep", "tokens", "FLOPs"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("time quartiles", no_wrap=True)
    for heading in ("marked", "diff", "counts", "diff"):
        table.add_column(heading, justify="right", no_wrap=True)
    above = rows[0].keep
    for row in rows:
        if row.keep != above:
            table.add_row()
        above = row.keep
        name = Text.assemble((row.recipe, _style(row)))
        keep = Text("" if row.keep is None else row.keep.text)
        number = problems.index(row.problem) + 1 if row.problem else 0
        figures = _missing(row, number) if number else _figures(row)
        table.add_row(name.append(" (control)" if row.control else "", "yellow"), keep, *figures)
    return table


def _style(row: Row) -> str:
    if row.control:
        return "yellow"
    return "bold" if row.recipe == BARE else ""


def _missing(row: Row, number: int) -> list[Text]:
    """Return the cells from the tokens on, of a row without figures."""
    return [Text(f"[{number}]", "red"), Text(""), Text(row.short, "red")]


def _figures(row: Row) -> list[Text]:
    """Return the cells from the tokens on."""
    cells = [Text(str(row.tokens)), Text(f"{row.flops:.2f}")]
    if row.recipe == BARE:
        cells.append(Text("1.00"))
    elif row.time is not None:
        time = row.time
        cells.append(Text(f"{time.ratio:.2f} {time.low:.2f}-{time.high:.2f}"))
    for score in (row.marked, row.counts):
        if score is not None:
            cells += _accuracy(score, row.recipe == BARE)
    return cells


def _accuracy(score: Score, bare: bool) -> tuple[Text, Text]:
    difference = Text("") if bare else Text(f"{100 * score.difference:+.1f}")
    return Text(f"{100 * score.value:.1f}"), difference


def _reading(rows: Sequence[Row], noise: Timing, images: int, rounds: int) -> list[str]:
    marked = [row.marked for row in rows if row.marked is not None]
    counts = [row.counts for row in rows if row.counts is not None]
    margins = [100 * max(score.margin for score in scores) for scores in (marked, counts)]
    paired = [100 * max(score.paired for score in scores) for scores in (marked, counts)]
    return [
        f"tokens: patch tokens after the last block, of {rows[0].tokens}. FLOPs: of the blocks, by "
        "arithmetic, relative to the bare model.",
        f"time: relative to the bare model in the same round; median of {rounds} interleaved rounds, and "
        f"quartiles. The bare model against itself: {noise}; smaller differences are noise.",
        f"marked, counts: right answers in % on {images} collages of test digits, which the model was not "
        f"trained on; 95 % half-widths (binomial) up to {margins[0]:.1f} and {margins[1]:.1f}. diff: to "
        f"the bare model on the same collages; 95 % half-widths (paired) up to {paired[0]:.1f} and "
        f"{paired[1]:.1f}.",
        "control: looks at no feature; what a method has to beat at the same number of tokens.",
    ]


def write_json(
    path: Path, rows: Sequence[Row], noise: Timing, command: str, images: int, threads: int
) -> None:
    """Write the figures of every row, and the setup of the measurement."""
    content = {
        "command": command,
        "versions": {
            "tokenzoo": __version__,
            "torch": torch.__version__,
            "timm": version("timm"),
            "python": platform.python_version(),
        },
        "threads": threads,
        "images": images,
        "bare_against_itself": _timing(noise),
        "rows": [_row(row) for row in rows],
    }
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def _row(row: Row) -> dict[str, Any]:
    return {
        "recipe": row.recipe,
        "keep": None if row.keep is None else row.keep.value,
        "control": row.control,
        "problem": row.problem or None,
        "tokens": row.tokens or None,
        "flops": None if row.problem else row.flops,
        "time": None if row.time is None else _timing(row.time),
        "marked": None if row.marked is None else asdict(row.marked),
        "counts": None if row.counts is None else asdict(row.counts),
    }


def _timing(timing: Timing) -> dict[str, Any]:
    return {
        "median": timing.ratio,
        "quartiles": [timing.low, timing.high],
        "rounds": list(timing.ratios),
    }
