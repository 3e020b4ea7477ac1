"""The ablation's rule and intervals, and that its results, the documents and the defaults agree."""

from __future__ import annotations

import inspect
import json
import math
import sys
from itertools import chain
from pathlib import Path

import ablate_evoprune as ablation
import collage_runs
import compare_recipes
import evoprune_tables
import evoprune_variants as variants
import merged_pairs
import pytest
import torch

import tokenzoo
from tokenzoo.recipes.evoprune import evoprune
from tokenzoo.testing import check
from tokenzoo.tools import digits

ROOT = Path(__file__).parents[2]

N = 1000
CHOICE = evoprune_tables.load("choose")


def hits(share: float, offset: int = 0) -> torch.Tensor:
    """Scores `[N]` with so many ones; another offset is another luck."""
    return (torch.arange(N).roll(offset) < round(share * N)).double()


def test_a_home_value_gives_way_only_to_a_significant_gain():
    scores = {1: hits(0.80), 2: hits(0.81), 3: hits(0.84), 4: hits(0.90), 5: hits(0.50)}
    values = [{"k": k} for k in (2, 3, 4, 5)]
    choice = ablation.choose(lambda options: scores[options["k"]], {"k": 1}, {"k": values})
    assert (choice.options, choice.settled, len(choice.rounds)) == ({"k": 4}, True, 2)
    # 9 or 10 collages of 1,000 that change are 3 standard errors: enough alone, not among many.
    scores[2] = hits(0.809)
    alone = ablation.choose(lambda options: scores[options["k"]], {"k": 1}, {"k": [{"k": 2}]})
    assert alone.options == {"k": 2}
    crowd = [{"k": 2}, *({"k": 5} for _ in range(99))]
    among = ablation.choose(lambda options: scores[options["k"]], {"k": 1}, {"k": crowd})
    assert among.options == {"k": 1}
    assert alone.bound == pytest.approx(1.95996, abs=1e-4)
    assert among.bound == pytest.approx(3.48076, abs=1e-4)


def test_a_gain_that_is_gone_with_the_others_is_taken_back():
    # Each alone gains 10 points, both together no more than b alone.
    def score(options):
        return hits(0.9 if options["a"] or options["b"] else 0.8)

    alternatives = {"a": [{"a": 1}], "b": [{"b": 1}]}
    choice = ablation.choose(score, {"a": 0, "b": 0}, alternatives)
    # Around (1, 1) neither gains, around (0, 0) both do: it never settles, and home stays.
    assert (choice.options, choice.settled) == ({"a": 0, "b": 0}, False)

    def dominated(options):
        return hits(0.95 if options["b"] else 0.9 if options["a"] else 0.8)

    choice = ablation.choose(dominated, {"a": 0, "b": 0}, alternatives)
    assert (choice.options, choice.settled) == ({"a": 0, "b": 1}, True)


def test_options_that_go_together_change_together():
    def score(options):
        return hits(0.9 if (options["curve"], options["beta"]) == ("exp", 5.0) else 0.5)

    home = {"curve": "nonnegative", "beta": 1.0}
    changes = [{"curve": "exp", "beta": 1.0}, {"curve": "exp", "beta": 5.0}]
    choice = ablation.choose(score, home, {"curve": changes})
    assert choice.options == changes[1]


def test_intervals_are_those_of_the_textbook():
    interval = collage_runs.wilson(torch.arange(100) < 90)
    assert interval["value"] == pytest.approx(0.9)
    assert (interval["low"], interval["high"]) == pytest.approx((0.82563, 0.94477), abs=1e-5)
    ours, other = torch.tensor([1, 1, 0, 1]), torch.tensor([1, 0, 0, 0])
    found = collage_runs.paired(ours, other)
    half = 1.95996 * math.sqrt(1 / 3) / math.sqrt(4)
    assert (found["value"], found["high"]) == pytest.approx((0.5, 0.5 + half), abs=1e-4)
    assert ablation.errors(torch.zeros(4)) == 0.0
    assert ablation.errors(torch.tensor([1.0, 0.0, 0.0, 1.0])) == pytest.approx(3**0.5)


def test_answers_are_the_accuracies_of_the_task():
    data = digits.collages("test", 6, seed=3)
    logits = torch.randn(6, 60, generator=torch.Generator().manual_seed(0))
    logits[0] = -1
    logits[0, data.answer[0]] = 1
    logits[0, 10 + 5 * torch.arange(10) + data.counts[0].clamp(max=4)] = 1
    answers, known = collage_runs.right(logits, data), digits.accuracy(logits, data)
    assert answers.all_counts[0]
    for name, share in known.items():
        found = getattr(answers, name.replace(" ", "_")).float().mean().item()
        assert found == pytest.approx(share)


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    first = collage_runs.Collages("validation", 4, 1, tmp_path)
    recipe = variants.recipe_of(variants.HOME, 32)
    answers = first.answers(recipe)
    again = collage_runs.Collages("validation", 4, 1, tmp_path)
    monkeypatch.setattr(collage_runs.digits, "load_digits_vit", lambda: pytest.fail("ran again"))
    kept = again.answers(recipe)
    assert torch.equal(kept.counts, answers.counts)
    assert torch.equal(kept.marked, answers.marked)
    with pytest.raises(pytest.fail.Exception, match="ran again"):
        again.answers(variants.recipe_of(variants.HOME, 16))


@pytest.mark.parametrize("split", variants.SPLITS.values(), ids=variants.SPLITS)
def test_the_splits_divide_what_is_free(split):
    check(split, "sides_formed")


def test_every_option_of_the_recipe_is_looked_at():
    # An estimate is no reading of the paper: docs/performance.md.
    options = set(inspect.signature(evoprune).parameters) - {"keep", "schedule", "stride"}
    swapped = variants.recipe_of(variants.HOME | {"split": "swapped"}, 16)
    assert swapped == tokenzoo.build("evoprune", keep=16, proposers="even").recipe
    options -= {"proposers"}
    reported = {name for change in variants.JOINT for name in change}
    assert options == (set(variants.HOME) - {"split"}) | {"start", "every"}
    assert {"start", "every"} <= reported
    home = variants.recipe_of(variants.HOME, 16)
    for change in chain(*variants.ALTERNATIVES.values()):
        assert variants.recipe_of(variants.HOME | change, 16) != home


def test_the_small_run_is_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "ALTERNATIVES", {"lam": [{"lam": 0.0}]})
    out = tmp_path / "choice.json"
    arguments = ["choose", "--images", "4", "--keep", "16", "--cache", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["ablate_evoprune.py", *arguments, "--out", str(out)])
    assert ablation.main() == 0
    found = json.loads(out.read_text())
    assert (found["chosen"], found["budgets"]) == (variants.HOME, [16])
    assert found["alternatives"][0]["16"]["all_counts"].keys() == {"value", "low", "high"}
    assert found["command"].startswith("python ablate_evoprune.py choose --images 4")
    assert "| changed | all ten, 16 |" in evoprune_tables.changes(found["alternatives"], [16])


def test_pairs_are_counted_by_cell_and_digit():
    # A collage of 2x2 cells of 4x4 patches with the digits 1, 2 / 1, 3; one token for each column.
    patch = torch.arange(64)
    column = patch % 8 // 4
    together = (column[:, None] == column)[None]
    ink = torch.zeros(1, 64, dtype=torch.bool)
    ink[0, [0, 1, 4, 32, 36]] = True  # two in the first cell, one in each of the others
    labels = torch.tensor([[1, 2, 1, 3]])
    found = merged_pairs.counted(together, ink, labels)
    # In one token: (0, 1) of one cell, (0, 32) and (1, 32) of two with one digit, (4, 36) with two.
    # From two cells, merged or not, there are 9 pairs; 2 of them show one digit.
    assert found.tolist() == [[1, 4], [2, 3], [2, 9]]
    images = -torch.ones(1, 3, 32, 32)
    images[0, :, 5, 9] = 1
    images[0, 0, 20, 20] = 1  # red alone is the tint
    assert merged_pairs.inked(images).nonzero().tolist() == [[0, 8 + 2]]


def test_the_defaults_are_the_papers_and_else_what_the_rule_chose():
    """The paper prints one number, `ctr`; the rule, which prefers another, decided the open ones."""
    assert (CHOICE["settled"], CHOICE["collages"]["of"]["split"]) == (True, "validation")
    assert CHOICE["chosen"].keys() == variants.HOME.keys()
    for keep in (64, 16):
        chosen = variants.recipe_of(CHOICE["chosen"], keep)
        assert chosen == tokenzoo.build("evoprune", keep=keep, ctr=0.1).recipe
        of_the_paper = variants.recipe_of(CHOICE["chosen"] | {"ctr": CHOICE["home"]["ctr"]}, keep)
        assert of_the_paper == tokenzoo.build("evoprune", keep=keep).recipe


def test_the_rule_chooses_the_same_from_the_recorded_comparisons():
    last = CHOICE["rounds"][-1]
    assert len(last) == CHOICE["comparisons"] == sum(map(len, variants.ALTERNATIVES.values()))
    assert CHOICE["standard_errors_needed"] == pytest.approx(ablation.bound(len(last)), abs=1e-4)
    better = {
        name
        for comparison in last
        if comparison["errors"] > CHOICE["standard_errors_needed"]
        for name in comparison["change"]
    }
    changed = {name for name, value in CHOICE["chosen"].items() if value != variants.HOME[name]}
    assert changed <= better


def test_the_comparison_has_every_recipe_at_three_budgets_on_test_collages():
    found = evoprune_tables.load("comparison")
    assert found["collages"]["of"]["split"] == "test"
    assert found["collages"]["of"]["images"] >= 5000
    there = {(row["recipe"], row["keep"]) for row in found["rows"]}
    assert {(name, keep) for name in compare_recipes.RECIPES for keep in (64, 32, 16)} <= there
    for row in found["rows"][1:]:
        recipe = compare_recipes.rows(row["keep"])[row["recipe"]]
        assert row["flops"] == pytest.approx(collage_runs.flops(recipe), abs=1e-4)


def test_the_tables_of_the_document_are_those_of_the_results():
    text = (ROOT / "docs" / "evoprune.md").read_text()
    found = dict(evoprune_tables.tables())
    assert {"comparison", "choose", "joint", "table_3", "figure_4", "ladder"} <= set(found)
    for name, table in found.items():
        assert table in text, f"{name}: paste what benchmarks/evoprune_tables.py prints"
