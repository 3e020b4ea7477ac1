"""docs/leaderboard.md is what `tokenzoo report` makes of the rows that are committed."""

from __future__ import annotations

from pathlib import Path

from tokenzoo.evaluation import ResultsFile
from tokenzoo.evaluation.leaderboard import leaderboard
from tokenzoo.evaluation.summary import summarize
from tokenzoo.evaluation.tasks import OWN_CONTROLS
from tokenzoo.recipes.controls import CONTROLS, CONTROLS_OF_CLIPS

DOCS = Path(__file__).parents[2] / "docs"


def test_the_leaderboard_is_that_of_the_rows() -> None:
    rows = ResultsFile(DOCS / "results" / "leaderboard.jsonl").rows()
    assert {row.key.task for row in rows} >= {"dense", "digits", "knn", "linear"}
    assert all(row.command for row in rows)
    made = leaderboard(summarize(rows, {*CONTROLS, *CONTROLS_OF_CLIPS, *OWN_CONTROLS}))
    assert (DOCS / "leaderboard.md").read_text() == made, (
        "run: tokenzoo report docs/results/leaderboard.jsonl --markdown docs/leaderboard.md"
    )
