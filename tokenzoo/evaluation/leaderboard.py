"""Results as tables of Markdown, one for each task, with the commands that measured them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation.hard import Split, hard_samples
from tokenzoo.evaluation.report_hard import NOTE, score_text
from tokenzoo.evaluation.report_tables import budget_text, spoken
from tokenzoo.evaluation.summary import Line, Summary

HEAD = """\
# Leaderboard

Each table has one task on one model. Scores are means with half of their 95 % interval; time and operations
are relative to the bare model. In bold: the best recipe at a budget, and those that are not distinguishable
from it (paired tests, Holm's correction over the task). \\* a control.
"""


def leaderboard(found: Sequence[Summary]) -> str:
    """Return the tables.

    Raises:
        BadArgumentError: there is nothing to show.
    """
    if not found:
        raise BadArgumentError("there are no rows to report; run `tokenzoo eval` first")
    return "\n".join([HEAD, *(_task(one) for one in found)])


def _task(one: Summary) -> str:
    parts = [f"## {_safe(one.task)} on {_safe(one.model)}", ""]
    if one.metrics:
        parts += [_safe(spoken(one)) + ".", ""]
        parts += [
            f"| recipe | keep | {_safe(one.metrics[0])} | of bare | time | operations | tokens |"
        ]
        parts += ["|---|---|---|---|---|---|---|"]
        parts += [_line(line, one) for line in (*([one.bare] if one.bare else []), *one.lines)]
        parts += ["", *_hard(one)]
    if one.refused:
        parts += [f"Do not run on this model: {_safe(', '.join(one.refused))}.", ""]
    if one.commands:
        parts += ["```sh", *one.commands, "```", ""]
    return "\n".join(parts)


def _line(line: Line, one: Summary) -> str:
    score = line.estimates[one.metrics[0]]
    name = _safe(line.name) + "\\*" * line.control
    value = f"{score.value:.3f} ± {score.half:.3f}"
    if line.among_best:
        name, value = f"**{name}**", f"**{value}**"
    cells = [
        name,
        budget_text(line.key.keep),
        value,
        "" if line.of_bare is None else f"{100 * line.of_bare:.1f} %",
        f"{line.time[0]:.2f}" if line.time else "",
        "" if line.flops is None else f"{line.flops:.2f}",
        "" if line.tokens is None else str(line.tokens),
    ]
    return f"| {' | '.join(cells)} |"


def _hard(one: Summary) -> list[str]:
    """Return lines of Markdown: a table for each metric, with two columns for each budget."""
    found = hard_samples(one)
    if not found.splits:
        return []
    lines = [f"### Hard and easy samples of {_safe(one.task)}", "", NOTE, ""]
    for metric, splits in groupby(found.splits, lambda split: split.metric):
        lines += [*_hard_table(metric, list(splits)), ""]
    return (
        lines + [f"Not split: {_safe(why)}." for why in found.missing] + [""] * bool(found.missing)
    )


def _hard_table(metric: str, splits: Sequence[Split]) -> list[str]:
    heads = [_safe(metric)]
    rows = {"bare": [text for split in splits for text in ("", score_text(split.bare))]}
    for place, split in enumerate(splits):
        heads += [f"{split.keep} hard, n = {split.hard}", f"{split.keep} easy, n = {split.easy}"]
        for found in split.lines:
            name = _safe(found.line.name) + "\\*" * found.line.control
            row = rows.setdefault(name, [""] * 2 * len(splits))
            row[2 * place : 2 * place + 2] = score_text(found.hard), score_text(found.easy)
    made = [heads, ["---"] * len(heads), *([name, *row] for name, row in rows.items())]
    return [f"| {' | '.join(cells)} |" for cells in made]


def _safe(text: str) -> str:
    """Return text that ends no cell and starts no markup."""
    for mark in "\\`*_|<[":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())
