"""What `tokenzoo eval --hard` prints: each recipe on hard and on easy samples."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.table import Table

from tokenzoo.cli.eval_report import add_column, empty_table, with_half
from tokenzoo.evaluation.hard import LEAST, SORTER, HardSamples, Split
from tokenzoo.evaluation.statistics import Estimate
from tokenzoo.evaluation.summary import Summary

CAPTION = (
    f"hard: {SORTER} at the same budget is wrong, the bare model right; easy: {SORTER} is right (what "
    f"that decides is left out); n samples, fewer than {LEAST} are too few; +- half of the 95 % interval; "
    "* a control"
)


def hard_tables(found: Summary, groups: HardSamples) -> list[Table]:
    """Return one table for each metric, with a line for each recipe and budget."""
    return [
        _table(f"{found.task}, {found.model}: {metric}, hard and easy samples", list(splits))
        for metric, splits in groupby(groups.splits, lambda split: split.metric)
    ]


def below_hard(groups: HardSamples) -> list[str]:
    """Return what is said below the tables: what could not be split."""
    return [f"no hard samples: {why}" for why in groups.missing]


def _table(title: str, splits: Sequence[Split]) -> Table:
    made = empty_table(title)
    made.caption = CAPTION
    for head in ("recipe", "keep", "tokens", "hard", "n", "easy", "n"):
        add_column(made, head, text=head == "recipe")
    for split in splits:
        counts, keep = (str(split.hard), str(split.easy)), str(split.keep)
        bare = _score(split.bare)
        tokens = "" if split.tokens is None else str(split.tokens)
        made.add_row("bare", "", "", "", counts[0], bare, counts[1])
        made.add_row(f"{SORTER}*", keep, tokens, "", counts[0], "", counts[1])
        for one in split.lines:
            line = one.line
            tokens = "" if line.tokens is None else str(line.tokens)
            name = line.name + "*" * line.control
            cells = (_score(one.hard), counts[0], _score(one.easy), counts[1])
            made.add_row(name, keep, tokens, *cells)
        made.add_section()
    return made


def _score(one: Estimate | None) -> str:
    return "too few" if one is None else with_half(one)
