"""The picture of a run: time against tokens, and where the time goes, one line of both per mode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenzoo.tools.benchmark.rows import Row, Table
from tokenzoo.tools.benchmark.workload import Workload
from tokenzoo.tools.viz import GREY, figure_class

PARTS = {
    "encoder_alone": ("encoder without selection", "#4c78a8"),
    "selection": ("selection", "#e45756"),
    "rest_alone": ("projector and rest", "#bab0ac"),
    "prefill_alone": ("prefill", "#72b7b2"),
}


def write(path: Path, work: Workload, tables: Sequence[Table], title: str) -> None:
    """Draw the tables to a PNG.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    bars = max(len(_measured(table.rows)) for table in tables)
    height = max(4.5, 0.3 * bars + 1.6) * len(tables) + 0.5
    figure = figure_class()(figsize=(13, height), dpi=140)
    axes = figure.subplots(len(tables), 2, squeeze=False)
    whole = "first_token" if work.multimodal else "encoder"
    for (lines, stack), table in zip(axes, tables, strict=True):
        _lines(lines, table, whole)
        _bars(stack, table)
        lines.set_title(f"{table.mode}: time, and floor (dashed)", fontsize=10)
        stack.set_title(f"{table.mode}: where the time goes", fontsize=10)
    figure.suptitle(title, fontsize=12, weight="bold")
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    figure.savefig(path, format="png", facecolor="white")


def _measured(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not row.problem]


def _lines(axes: Any, table: Table, whole: str) -> None:
    """One line per recipe: the time of the call, relative to the bare model's, against tokens."""
    rows = [row for row in _measured(table.rows) if row.keep is not None]
    for number, name in enumerate(dict.fromkeys(row.name for row in rows)):
        own = [row for row in rows if row.name == name and row.tokens]
        own.sort(key=lambda row: row.tokens[0])
        if not own:
            continue
        tokens = [row.prompt or row.tokens[0] for row in own]
        times, colour = [row.time[whole] for row in own], f"C{number}"
        middle = [time.ratio for time in times]
        spread = [[t.ratio - t.low for t in times], [t.high - t.ratio for t in times]]
        axes.errorbar(tokens, middle, spread, fmt="o-", color=colour, capsize=2, label=name)
        axes.plot(tokens, [row.floor[whole] for row in own], "x--", color=colour, alpha=0.6)
    axes.axhline(1, color=GREY, linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(
        "tokens of the prompt" if whole == "first_token" else "patch tokens of an image"
    )
    axes.set_ylabel(f"time of {whole.replace('_', ' ')}, bare = 1")
    if rows:
        axes.legend(fontsize=8)


def _bars(axes: Any, table: Table) -> None:
    """A bar per row: what each part takes of the bare model's whole call."""
    rows = _measured(table.rows)[::-1]
    names = [row.name + ("" if row.keep is None else f", {row.keep:g}") for row in rows]
    ends = [0.0] * len(rows)
    for part, (label, colour) in PARTS.items():
        widths = [max(0.0, row.share[part].ratio) if part in row.share else 0.0 for row in rows]
        axes.barh(names, widths, left=ends, color=colour, label=label if any(widths) else None)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    axes.axvline(1, color=GREY, linewidth=1)
    axes.set_xlabel("share of the bare model's call")
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8)
