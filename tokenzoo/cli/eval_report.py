"""The table that `tokenzoo eval` prints for a task."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from tokenzoo.cli.options import is_control
from tokenzoo.evaluation.results import OK, Row
from tokenzoo.evaluation.statistics import estimate


def table(rows: Sequence[Row]) -> Table:
    """Return the rows of one task: the bare model, then budget by budget, the best first."""
    bare = next(row for row in rows if row.key.recipe is None)
    metrics = list(bare.scores)
    title = f"{bare.key.task}, {bare.key.model}: {len(bare.scores[metrics[0]])} samples"
    made = Table(title=title, caption="intervals hold 95 %; * a control")
    for name in (
        "recipe",
        "keep",
        "tokens",
        "operations",
        "time",
        *metrics,
        "of bare",
        "agreement",
    ):
        made.add_column(name, justify="left" if name == "recipe" else "right")
    for row in sorted(rows, key=lambda one: _order(one, metrics[0])):
        made.add_row(*cells(row, bare, metrics))
    return made


def _order(row: Row, metric: str) -> tuple[bool, str, bool, float]:
    scores = row.scores.get(metric, ())
    mean = sum(scores) / len(scores) if scores else 0.0
    return (row.key.recipe is not None, repr(row.key.keep), row.status != OK, -mean)


def cells(row: Row, bare: Row, metrics: Sequence[str]) -> list[str]:
    """Return the cells of one row; of a refused one, the reason's first words."""
    key = row.key
    name = "bare" if key.recipe is None else key.recipe + "*" * is_control(key.recipe)
    name += f" (seed {key.seed})" if key.seed else ""
    keep = "" if key.keep is None else f"{key.keep}"
    if row.status != OK:
        return [name, keep, "", "", row.reason.partition(":")[0], *[""] * (len(metrics) + 2)]
    main = row.scores[metrics[0]]
    whole = sum(bare.scores[metrics[0]])
    share = f"{100 * sum(main) / whole:.1f} %" if whole else ""
    same = f"{100 * sum(row.agreement) / len(row.agreement):.1f} %" if row.agreement else ""
    return [
        name,
        keep,
        "" if row.tokens is None else str(row.tokens),
        "" if row.flops is None else f"{row.flops:.2f}",
        f"{row.time[0]:.2f}" if row.time else "",
        *(str(estimate(row.scores[one])) for one in metrics),
        share,
        same,
    ]
