"""What `tokenzoo eval` prints of a task: a table that fits into 80 columns, and a few lines below it."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table

from tokenzoo.cli.options import is_control
from tokenzoo.errors import UnknownNameError
from tokenzoo.evaluation.results import Row
from tokenzoo.evaluation.statistics import Estimate
from tokenzoo.evaluation.summary import Line, Summary
from tokenzoo.evaluation.tasks import OWN_CONTROLS as OF_TASKS

WIDTH = 80
GAP = 2  # columns between two of the table


def table(found: Summary, width: int = WIDTH) -> Table:
    """Return a line for each recipe and budget; of the metrics after the main one, those that fit."""
    main, *others = found.metrics
    caption = (
        f"+- half of the 95 % interval of {main}; * a control; > the best at its budget, or not "
        "distinguishable from it"
    )
    made = empty_table(f"{found.task}, {found.model}: {found.samples} samples")
    lines = [*([] if found.bare is None else [found.bare]), *found.lines]
    cells = [_cells(line, main) for line in lines]
    heads = ["", "recipe", "keep", "tokens", "time", "ops", main, "of bare", "same answer"]
    shown = [place for place in range(len(heads)) if place < 2 or any(row[place] for row in cells)]
    taken = sum(_width(heads[place], *(row[place] for row in cells)) for place in shown)
    fitting = 0
    while fitting < len(others) and taken + _width(others[fitting], "0.000") <= width + GAP:
        taken += _width(others[fitting], "0.000")
        fitting += 1
    for head in [*(heads[place] for place in shown), *others[:fitting]]:
        add_column(made, head.replace(" ", "\n"), text=head in heads[:2])
    for place, (line, row) in enumerate(zip(lines, cells, strict=True)):
        last = place + 1 == len(lines) or repr(lines[place + 1].key.keep) != repr(line.key.keep)
        rest = [f"{line.estimates[metric].value:.3f}" for metric in others[:fitting]]
        made.add_row(*(row[one] for one in shown), *rest, end_section=last)
    if others[fitting:]:
        caption += f"; in the file too: {', '.join(others[fitting:])}"
    made.caption = caption
    return made


def empty_table(title: str) -> Table:
    """Return a table in the form of all tables of results."""
    return Table(
        title=title,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        title_justify="left",
        caption_justify="left",
    )


def add_column(made: Table, head: str, *, text: bool) -> None:
    """Add a column of text, which is folded where it is too long, or one of numbers."""
    made.add_column(head, justify="left" if text else "right", no_wrap=not text, overflow="fold")


def below(found: Summary) -> list[str]:
    """Return what is said below the table."""
    if not found.refused:
        return []
    return [f"do not run on this model: {', '.join(found.refused)} (reason in the file)"]


def controls_of(rows: Iterable[Row]) -> set[str]:
    """Return the recipes that are controls, those of tasks too; one that is not installed here is not."""
    found: set[str] = set()
    for name in {row.key.recipe for row in rows}:
        try:
            if name is not None and (name in OF_TASKS or is_control(name)):
                found.add(name)
        except UnknownNameError:  # of a plugin, measured elsewhere
            continue
    return found


def _width(head: str, *cells: str) -> int:
    """Return the columns that a header, broken at its spaces, and its cells take, with the gap."""
    return GAP + max(map(len, [*head.split(" "), *cells]))


def _cells(line: Line, main: str) -> list[str]:
    return [
        ">" if line.among_best else "",
        line.name + "*" * line.control,
        "" if line.key.keep is None else str(line.key.keep),
        "" if line.tokens is None else str(line.tokens),
        f"{line.time[0]:.2f}" if line.time else "",
        "" if line.flops is None else f"{line.flops:.2f}",
        with_half(line.estimates[main]),
        "" if line.of_bare is None else percent(line.of_bare),
        "" if line.agreement is None else percent(line.agreement),
    ]


def with_half(one: Estimate) -> str:
    """Return a mean and half of its interval."""
    return f"{one.value:.3f} +-{one.half:.3f}"


def percent(share: float) -> str:
    """Return a share in percent."""
    return f"{100 * share:.1f}%"
