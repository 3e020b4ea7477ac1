"""Hard samples: which are sorted where, what each recipe scores on them, and what is said of few."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.evaluation.test_summary import row
from tokenzoo.evaluation import Row
from tokenzoo.evaluation.hard import LEAST, HardSamples, Split, hard_samples
from tokenzoo.evaluation.leaderboard import leaderboard
from tokenzoo.evaluation.report_hard import hard_table
from tokenzoo.evaluation.statistics import estimate
from tokenzoo.evaluation.summary import summarize

# 20 samples that only the bare model gets right, 15 that both do, 3 that only downsample does, 2 neither.
BARE = [1] * 20 + [1] * 15 + [0] * 3 + [0] * 2
SMALL = [0] * 20 + [1] * 15 + [1] * 3 + [0] * 2
OURS = [1] * 16 + [0] * 4 + [1] * 12 + [0] * 3 + [1] * 3 + [1] * 2


ROWS = [
    row(None, BARE),
    row("downsample", SMALL, tokens=16),
    row("tome", [1] * 10 + [0] * 30),
    row("evoprune", OURS),
]


def found(*rows: Row) -> HardSamples:
    [one] = summarize(rows, {"downsample"})
    return hard_samples(one)


def split(*rows: Row) -> Split:
    [one] = found(*rows).splits
    return one


def test_samples_are_sorted_by_downsample_and_the_bare_model() -> None:
    """The sorter has no line; the best on hard samples comes first."""
    one = split(*ROWS)
    assert (one.metric, one.keep, one.tokens) == ("word", 0.5, 16)
    assert (one.hard, one.easy, one.neither) == (20, 18, 2)
    assert one.bare == estimate([1] * 15 + [0] * 3)
    assert [(line.line.name, line.hard, line.easy) for line in one.lines] == [
        ("evoprune", estimate([1] * 16 + [0] * 4), estimate([1] * 15 + [0] * 3)),
        ("tome", estimate([1] * 10 + [0] * 10), estimate([0] * 18)),
    ]


def test_each_budget_is_sorted_by_its_own_downsample() -> None:
    all_wrong = [0] * len(BARE)
    more = [row("downsample", all_wrong, 8), row("evoprune", OURS, 8), row("tome", OURS, 4)]
    both = found(*ROWS, *more)
    assert [(one.keep, one.hard, one.easy) for one in both.splits] == [(0.5, 20, 18), (8, 35, 0)]
    assert both.missing == ["keep=4: downsample did not run; add it to --recipe"]


@pytest.mark.parametrize("few", [LEAST - 1, LEAST])
def test_a_group_of_few_has_no_score(few: int) -> None:
    small = [0] * few + [1] * (20 - few)
    one = split(row(None, [1] * 20), row("downsample", small), row("tome", [1] * 20))
    [line] = one.lines
    assert (one.hard, one.easy) == (few, 20 - few)
    assert (line.hard is None) == (few < LEAST)
    assert line.easy is None
    assert one.bare is None


def test_seeds_are_pooled_before_the_samples_are_sorted() -> None:
    seeds = [row("random", [value] * len(BARE), seed=value) for value in (0, 1)]
    [line] = split(*ROWS[:2], *seeds).lines
    assert line.hard is not None
    assert line.hard.value == 0.5


def test_metrics_are_apart_and_those_that_are_not_right_or_wrong_left_out() -> None:
    def graded(one: Row) -> Row:
        scores = list(one.scores["word"])
        return replace(one, scores={"grade": [score * 0.5 for score in scores], "word": scores})

    assert [one.metric for one in found(*map(graded, ROWS)).splits] == ["word"]
    rows = [*ROWS, row("downsample", SMALL, 8), row("tome", OURS, 8)]
    rows = [replace(one, scores={"a": one.scores["word"], "b": one.scores["word"]}) for one in rows]
    order = [(one.metric, one.keep) for one in found(*rows).splits]
    assert order == [("a", 0.5), ("a", 8), ("b", 0.5), ("b", 8)]
    only = [replace(one, scores={"grade": one.scores["grade"]}) for one in map(graded, ROWS)]
    assert found(*only) == HardSamples([], ["no answer of this task is right or wrong"])


def test_what_cannot_be_split_is_said() -> None:
    def never(keep: float, reason: str) -> Row:
        return row("downsample", 0, keep, status="refused", scores={}, reason=reason)

    [missing] = found(ROWS[0], ROWS[2], never(0.5, "no such rectangle")).missing
    assert missing == "keep=0.5: downsample did not run (no such rectangle)"
    [missing] = found(*ROWS, row("tome", OURS, 8), never(8, "out of reach")).missing
    assert missing == "keep=8: downsample did not run (out of reach)"
    assert "no bare model" in found(*ROWS[1:]).missing[0]


def test_the_page_and_the_tables_have_each_score_and_escape_names() -> None:
    nasty = "<b>|"
    rows = [replace(one, scores={nasty: one.scores["word"]}) for one in ROWS]
    [one] = summarize([*rows, replace(row("tome", OURS, 8), scores={nasty: OURS})])
    page = hard_table(one)
    assert page.count("<tr data-name=") == 2
    assert 'data-value="0.8">0.800 ± ' in page
    assert "n = 20" in page
    assert "<b>" not in page
    lines = leaderboard([one]).splitlines()
    assert "| \\<b>\\| | 0.5 hard, n = 20 | 0.5 easy, n = 18 |" in lines
    [line] = [line for line in lines if line.startswith("| evoprune | 0.800")]
    assert line == "| evoprune | 0.800 ± 0.168 | 0.833 ± 0.167 |"
    assert "Not split: keep=8: downsample did not run; add it to --recipe." in lines
    assert hard_table(summarize(ROWS[1:])[0]) == ""
