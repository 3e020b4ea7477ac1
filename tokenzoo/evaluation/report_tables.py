"""The tables of the page: a row for each recipe and budget, and what is lost by kind of question."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tokenzoo.evaluation.statistics import LEVEL, Difference
from tokenzoo.evaluation.summary import BARE, CONTROL, REFERENCE, Line, Summary

COLUMNS = (
    ("recipe", "text"),
    ("task", "text"),
    ("keep", "number"),
    ("tokens", "number"),
    ("time", "number"),
    ("operations", "number"),
    ("score", "number"),
    ("of bare", "number"),
    ("same answer", "number"),
    ("vs bare", "number"),
    ("vs best control", "number"),
    ("vs tome", "number"),
)


def task_id(one: Summary) -> str:
    """Return what names a task and model in the page."""
    return f"{one.task} on {one.model}"


def budget_text(keep: float | None) -> str:
    """Return a budget as it is shown: 16 is a count, 0.25 a share; "" for the bare model."""
    return "" if keep is None else str(keep)


def spoken(one: Summary) -> str:
    """Return the facts of a task in a sentence."""
    facts = ", ".join(f"{name} {value}" for name, value in one.facts.items() if name != "samples")
    return f"{one.samples} samples; the main metric is {one.metrics[0]}" + (
        f". {facts}" if facts else ""
    )


def line_row(line: Line, one: Summary) -> str:
    """Return a line of a task as a row of the table."""
    score = line.estimates[one.metrics[0]]
    cells = [
        cell(task_id(one), _task_cell(one), "text"),
        cell(line.key.keep, budget_text(line.key.keep)),
        cell(line.tokens, str(line.tokens)),
        cell(line.time[0] if line.time else None, f"{line.time[0]:.2f}" if line.time else ""),
        cell(line.flops, "" if line.flops is None else f"{line.flops:.2f}"),
        cell(score.value, f"{score.value:.3f} <small>±{score.half:.3f}</small>"),
        cell(line.of_bare, _percent(line.of_bare)),
        cell(line.agreement, _percent(line.agreement)),
        *(_difference(line.against.get(other)) for other in (BARE, CONTROL, REFERENCE)),
    ]
    return table_row(line, one, cells)


def _task_cell(one: Summary) -> str:
    return f'{escape(one.task)} <small class="below">{escape(one.model)}</small>'


def table_row(line: Line, one: Summary, cells: Sequence[str]) -> str:
    """Return a line of a task, with its name, as a row of these cells."""
    seeds = f" <small>{line.seeds} seeds</small>" if line.seeds > 1 else ""
    best = ' <span title="best, or not distinguishable from it">●</span>' if line.among_best else ""
    name, rest = escape(line.name), "".join(cells)
    shown = f"{name}{'*' * line.control}{best}{seeds}"
    return (
        f'<tr data-name="{name}" data-task="{escape(task_id(one))}" '
        f'data-budget="{budget_text(line.key.keep)}" data-control="{line.control:d}">'
        f'<th scope="row" data-value="{name}">{shown}</th>{rest}</tr>'
    )


def cell(value: object, shown: str, kind: str = "") -> str:
    """Return a cell that is sorted by its value; an empty one if that is None."""
    if value is None:
        return "<td></td>"
    return f'<td{f" class={kind}" if kind else ""} data-value="{escape(str(value))}">{shown}</td>'


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _difference(one: Difference | None) -> str:
    if one is None:
        return cell(None, "")
    shown = f"{one.value:+.3f}"
    if one.p <= 1 - LEVEL:
        shown = f"<b>{shown}</b>"
    p = "p &lt; 0.001" if one.p < 0.001 else f"p = {one.p:.3f}"
    return cell(
        one.value, f'{shown} <small>±{one.half:.3f}</small> <small class="below">{p}</small>'
    )


def kinds_table(one: Summary) -> str:
    """Return each metric of each line, next to its change from the bare model."""
    title = f"By kind of question: {task_id(one)}"
    heads = "".join(f'<th scope="col">{escape(metric)}</th>' for metric in one.metrics)
    rows = [
        table_row(
            line,
            one,
            [
                cell(line.key.keep, budget_text(line.key.keep)),
                *(_kind(line, one, metric) for metric in one.metrics),
            ],
        )
        for line in (*([one.bare] if one.bare else []), *one.lines)
    ]
    name = escape(task_id(one))
    return (
        f'<section data-task="{name}">\n<h2>{escape(title)}</h2>\n'
        '<p class="note">The mean of each metric, and its change from the bare model; the stronger the '
        "colour, the more is lost.</p>\n"
        f'<div class="scroll" role="region" aria-label="{escape(title)}" tabindex="0"><table>\n'
        f'<thead><tr><th scope="col">recipe</th><th scope="col">keep</th>{heads}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>\n</section>"
    )


def _kind(line: Line, one: Summary, metric: str) -> str:
    value = line.estimates[metric].value
    if one.bare is None or line is one.bare:
        return f"<td>{value:.3f}</td>"
    whole = one.bare.estimates[metric].value
    change = value - whole
    share = min(abs(change / whole), 1.0) if whole else 0.0
    kind = "lost" if change < 0 else "gained"
    return f'<td class="{kind}" style="--share: {share:.3f}">{value:.3f} <small>{change:+.3f}</small></td>'
