"""Hard and easy samples of a task, as a table of the page."""

from __future__ import annotations

from html import escape

from tokenzoo.evaluation.hard import LEAST, SORTER, HardLine, Split, hard_samples
from tokenzoo.evaluation.report_tables import budget_text, cell, table_row, task_id
from tokenzoo.evaluation.statistics import Estimate
from tokenzoo.evaluation.summary import Summary

NOTE = (
    f"Hard samples: {SORTER}, with the same budget, is wrong and the bare model right. Easy samples: "
    f"{SORTER} is right. Fewer than {LEAST} samples are too few for a score."
)
FEW = "too few"


def hard_table(one: Summary) -> str:
    """Return a section with a row for each metric, budget and recipe; "" if nothing can be split."""
    found = hard_samples(one)
    if not found.splits:
        return ""
    title = f"Hard and easy samples: {task_id(one)}"
    rows = [_row(line, split, one) for split in found.splits for line in split.lines]
    missing = "".join(f'<p class="note">{escape(why)}</p>\n' for why in found.missing)
    name = escape(task_id(one))
    heads = "".join(
        f'<th scope="col">{head}</th>'
        for head in ("recipe", "metric", "keep", "hard", "easy", "bare on easy", "neither")
    )
    return (
        f'<section data-task="{name}">\n<h2>{escape(title)}</h2>\n<p class="note">{escape(NOTE)}</p>\n'
        f'{missing}<div class="scroll" role="region" aria-label="{escape(title)}" tabindex="0"><table>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + "\n</tbody></table></div>\n"
        "</section>"
    )


def _row(found: HardLine, split: Split, one: Summary) -> str:
    cells = [
        cell(split.metric, escape(split.metric), "text"),
        cell(split.keep, budget_text(split.keep)),
        *(
            cell(
                "" if score is None else score.value, f"{score_text(score)} <small>n = {n}</small>"
            )
            for score, n in (
                (found.hard, split.hard),
                (found.easy, split.easy),
                (split.bare, split.easy),
            )
        ),
        cell(split.neither, str(split.neither)),
    ]
    return table_row(found.line, one, cells)


def score_text(score: Estimate | None) -> str:
    """Return a score with half of its interval, or that the samples are too few."""
    return FEW if score is None else f"{score.value:.3f} ± {score.half:.3f}"
