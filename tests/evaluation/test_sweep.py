"""A sweep: what its rows say, what it leaves on the model, and that it goes on where it was stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenzoo
from tests.evaluation.subjects import SAMPLES, TOKENS, subject
from tokenzoo.errors import BadArgumentError, UnknownNameError
from tokenzoo.evaluation import Job, ResultsFile, TaskOptions, jobs, run
from tokenzoo.evaluation.tasks import prepare

RECIPES = ["evoprune", "random", "fastv"]


def test_rows_are_those_of_the_attached_model() -> None:
    toy = subject()
    wanted = jobs(RECIPES, [0.5, 40], seeds=2)
    bare, *rows = run(toy, wanted, rounds=0)
    assert [job.key(toy) for job in wanted] == [row.key for row in rows]
    assert bare.scores["right"] == [0, 1, 1, 1, 1, 1]
    assert bare.agreement == [1] * SAMPLES
    for job, row in zip(wanted, rows, strict=True):
        if job.recipe == "fastv":
            assert (row.status, row.scores) == ("refused", {})
            assert "AttachError" in row.reason
            continue
        plan = tokenzoo.build(job.recipe, keep=job.keep).plan(
            TOKENS, 4, prefix=1, width=toy.model.embed_dim
        )
        assert (row.tokens, row.flops) == (plan.visual, round(plan.flops, 4))
        options = {"seed": job.seed} if job.recipe == "random" else {}
        with tokenzoo.build(job.recipe, keep=job.keep, **options).attach(toy.model):
            outcome = toy.score(toy.model, range(SAMPLES), "")
        assert row.scores["right"] == outcome.scores["right"].int().tolist()
        assert row.scores["logit"] == pytest.approx(outcome.scores["logit"].tolist(), rel=1e-5)
    assert len({tuple(row.scores["logit"]) for row in rows if row.key.recipe == "random"}) == 4
    assert torch.equal(toy.score(toy.model, range(1), "").scores["right"], torch.tensor([False]))


@pytest.mark.filterwarnings("error:keep=")
def test_a_budget_is_that_of_the_pass() -> None:
    """The model is made for 196 tokens and shown 49: 20 is in reach, and 5 gives a row with the reason."""
    toy = subject(img_size=224, dynamic_img_size=True)
    _, near, far = run(toy, jobs(["evoprune"], [20, 5]), rounds=0)
    assert (near.status, near.tokens) == ("ok", 20)
    assert (far.status, far.reason.partition(":")[0]) == ("refused", "BudgetError")
    assert not hasattr(toy.model, "_tokenzoo_attached")


@pytest.mark.parametrize("per_patch", [False, True])
def test_a_recipe_after_the_last_block_has_no_row_where_nothing_reads_the_tokens(
    per_patch: bool,
) -> None:
    toy = replace(subject(), per_patch=per_patch)
    _, after, everything = run(toy, [Job("fastervlm", 16), Job("fastervlm", 1.0)], rounds=0)
    assert (after.status, everything.status) == ("ok" if per_patch else "refused", "ok")
    assert per_patch or "fastervlm saves nothing" in after.reason


def test_a_smaller_image_has_the_plan_of_the_whole_one() -> None:
    row = list(run(subject(), jobs(["downsample"], [16]), rounds=0))[1]
    assert (row.status, row.tokens) == ("ok", 16)
    assert 0.3 < (row.flops or 0) < 0.35


def test_time_is_relative_to_the_bare_model() -> None:
    row = list(run(subject(), jobs(["evoprune"], [16]), rounds=3))[1]
    ratio, low, high = row.time
    assert 0 < low <= ratio <= high


def test_interrupted_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    wanted = jobs(RECIPES, [0.25, 16])
    whole = list(run(subject(), wanted, rounds=0))
    file = ResultsFile(tmp_path / "results.jsonl")
    for stop in (3, 2, None):
        toy = subject()
        done = file.check({(toy.task, toy.model_name): toy.facts})
        for number, row in enumerate(run(toy, wanted, rounds=0, done=done)):
            if number == stop:
                break
            file.append(row)
    assert file.rows() == whole


def test_names_and_options_are_checked() -> None:
    with pytest.raises(UnknownNameError, match="evoprun"):
        jobs(["evoprun"], [0.5])
    with pytest.raises(BadArgumentError, match="digit'"):
        prepare("digit", TaskOptions())
    wrong = {"samples": 0}, {"size": 0}, {"seed": -1}, {"quick": 1}, {"samples": 2.0}
    for ((name, value),) in (one.items() for one in wrong):
        with pytest.raises(BadArgumentError, match=f"{name}={value}"):
            TaskOptions(**{name: value})


@pytest.mark.parametrize(
    ("options", "samples"),
    [({}, 40), ({"quick": True}, 2), ({"samples": 7}, 7), ({"samples": 7, "quick": True}, 7)],
)
def test_a_first_look_has_fewer_samples_unless_they_are_chosen(
    options: dict[str, Any], samples: int
) -> None:
    assert TaskOptions(**options).count(40, 2) == samples
