"""EvoPrune's open numbers on three models: halves, the rule, equal time, and the tables of the document."""

from __future__ import annotations

import json
from pathlib import Path

import evoprune_on_tasks as on_tasks
import evoprune_search as search
import evoprune_subjects as subjects
import evoprune_task_tables as tables
import pytest
import torch

from tests.evaluation.subjects import TOKENS, subject
from tokenzoo.evaluation import Job
from tokenzoo.tools import digits

DOCUMENT = (Path(__file__).parents[2] / "docs" / "evoprune.md").read_text()


def test_the_halves_are_all_samples_once():
    toy = subject()
    whole = toy.score(toy.model, range(toy.samples), "").scores["logit"]
    halves = [subjects.part_of(toy, half) for half in subjects.HALVES]
    found = [half.score(half.model, range(half.samples), "").scores["logit"] for half in halves]
    assert torch.cat(found).allclose(whole, atol=1e-5)
    assert {half.facts["half"] for half in halves} == set(subjects.HALVES)
    scans = [set(digits.splits()[split].indices.tolist()) for split in subjects.HALVES.values()]
    assert not set.intersection(*scans)


def test_a_row_is_measured_once_and_a_refusal_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    job = subjects.variant(subjects.PAPER | {"lam": 0.0, "split": "swapped"}, 16)
    first = subjects.Measured(subject(), path, "a command", TOKENS).scores([job])
    monkeypatch.setattr(subjects, "row_of", lambda *_: pytest.fail("ran again"))
    again = subjects.Measured(subject(), path)
    assert again.scores([job]).equal(first)
    assert again.row(job).command == "a command"
    assert json.loads(job.key(again.subject).options) == {"lam": 0.0, "split": "swapped"}
    monkeypatch.undo()
    with pytest.raises(ValueError, match="does not run"):
        again.row(Job("fastv", 16))


def test_few_samples_need_more_standard_errors():
    assert on_tasks.bound(1, 25) == pytest.approx(2.0639, abs=1e-4)  # t of 24 degrees, 97.5 %
    assert on_tasks.bound(34, 24) > on_tasks.bound(34, 1500) > on_tasks.bound(1, 1500)


def test_equal_time_favours_the_rival():
    names = ("evoprune", "tome", "plain")
    times = {
        name: {
            str(keep): [search.operations(name, keep, "digits") + more] for keep in search.LADDER
        }
        for name, more in zip(names, (0.2, 0.1, 0.1), strict=True)
    }
    at = search.equal_time(times, "digits")
    assert at["budgets"]["evoprune"] == list(subjects.BUDGETS["digits"])
    for target, theirs, ours in zip(
        at["targets"], at["budgets"]["tome"], at["budgets"]["plain"], strict=True
    ):
        assert search.operations("tome", theirs, "digits") + 0.1 >= target
        assert search.operations("plain", ours, "digits") + 0.1 <= target
        assert search.operations("plain", ours + 1, "digits") + 0.1 > target
    times["plain"] = {keep: [5 + values[0]] for keep, values in times["plain"].items()}
    assert set(search.equal_time(times, "digits")["budgets"]) == {"evoprune", "tome"}


@pytest.mark.parametrize("task", on_tasks.SITES)
def test_the_recorded_choice_is_that_of_the_recorded_comparisons(task):
    found = json.loads((subjects.RESULTS / f"evoprune-choose-{task}.json").read_text())
    assert found["home"] == subjects.PAPER
    limit = on_tasks.bound(len(found["rounds"][0]), found["samples"])
    assert found["standard_errors_needed"] == pytest.approx(limit, abs=1e-4)


def test_the_tables_of_the_document_are_those_of_the_results():
    for name, table in tables.tables():
        assert table in DOCUMENT, f"{name}: paste what benchmarks/evoprune_task_tables.py prints"
