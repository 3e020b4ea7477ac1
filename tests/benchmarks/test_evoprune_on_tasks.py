"""EvoPrune's open numbers on three models: halves, the rule, equal time, and the tables of the document."""

from __future__ import annotations

import json
from functools import partial
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


def test_equal_cost_favours_the_rival():
    names = ("evoprune", "tome", "plain")
    tower = search.TOWERS["digits"]
    ours = {name: partial(search.job, name) for name in names}
    times = {
        name: {str(keep): [tower.operations(ours[name](keep)) + more] for keep in tower.ladder}
        for name, more in zip(names, (0.2, 0.1, 0.1), strict=True)
    }
    at = search.equal_cost(times, "digits")
    budgets = at["budgets"]
    assert budgets["evoprune"] == list(subjects.BUDGETS["digits"])
    for target, theirs, own in zip(at["targets"], budgets["tome"], budgets["plain"], strict=True):
        assert tower.operations(ours["tome"](theirs)) + 0.1 >= target
        assert tower.operations(ours["plain"](own)) + 0.1 <= target
        assert tower.operations(ours["plain"](own + 1)) + 0.1 > target
    times["plain"] = {keep: [5 + values[0]] for keep, values in times["plain"].items()}
    times["tome"] = {keep: [values[0] - 5] for keep, values in times["tome"].items()}
    assert search.equal_cost(times, "digits")["budgets"] == {
        "evoprune": list(subjects.BUDGETS["digits"]),
        "tome": [256, 256],
        "plain": [],
    }


def test_the_value_of_a_candidate_is_its_worst_difference():
    def task(**errors):
        return {"errors": {name.replace("_", " "): own for name, own in errors.items()}}

    first = task(plain={"evoprune": 3, "tome": 1}, keys={"evoprune": 2, "tome": 2})
    second = task(keys={"evoprune": 0, "tome": 5}, plain={"evoprune": 4, "tome": 4})
    assert search.values({"one": first}) == {"keys": 2, "plain": 1}
    assert list(search.values({"one": first, "two": second}).items()) == [("plain", 1), ("keys", 0)]
    assert search.values({"one": first, "two": task(keys={"evoprune": 0, "tome": 5})}) == {
        "keys": 0
    }


@pytest.mark.parametrize("name", search.CANDIDATES)
def test_every_candidate_reaches_the_budgets_that_are_timed(name):
    for tower in search.TOWERS.values():
        for keep in tower.ladder:
            assert 0 < tower.operations(search.job(name, keep)) < 1


@pytest.mark.parametrize("task", on_tasks.SITES)
def test_the_recorded_choice_is_that_of_the_recorded_comparisons(task):
    found = json.loads((subjects.RESULTS / f"evoprune-choose-{task}.json").read_text())
    assert found["home"] == subjects.PAPER
    limit = on_tasks.bound(len(found["rounds"][0]), found["samples"])
    assert found["standard_errors_needed"] == pytest.approx(limit, abs=1e-4)


def test_the_tables_of_the_document_are_those_of_the_results():
    for name, table in tables.tables():
        assert table in DOCUMENT, f"{name}: paste what benchmarks/evoprune_task_tables.py prints"
