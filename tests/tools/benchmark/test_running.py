"""A run: its rows and ratios, whoever fails in it, other people's code, and ways of running."""

from __future__ import annotations

import functools
import time
from dataclasses import replace

import pytest
import torch

import tokenzoo
from tokenzoo.errors import BadArgumentError, BudgetError
from tokenzoo.tools.benchmark import Candidate, Sizes, attaching, copy_of, load, run, unfused


def recipe(name: str, keep: float = 0.5) -> Candidate:
    return Candidate(name, attaching(tokenzoo.build(name, keep=keep)), keep)


@pytest.fixture(scope="module")
def tower():
    return load("clip-l-336", Sizes(tiny=True))


@pytest.fixture(scope="module")
def video():
    return load("llava-onevision-0.5b", Sizes(tiny=True, frames=2))


def test_the_rows_of_a_multimodal_model(video):
    calls: list[tuple[int, int]] = []
    candidates = [recipe("evoprune", 0.25), recipe("fastv", 0.25)]
    table = run(video, candidates, rounds=2, between=lambda *done: calls.append(done))
    bare, evoprune, fastv, again = table.rows
    assert [row.name for row in table.rows] == ["bare", "evoprune", "fastv", "bare again"]
    assert calls == [(i + 1, 8) for i in range(8)]
    assert (table.mode, table.rounds) == ("eager", 2)
    alone = {"encoder_alone", "rest_alone", "prefill_alone"}
    parts = {"encoder", "rest", "prefill", "selection", "before_llm", "first_token", *alone}
    for row in table.rows:
        assert (row.problem, row.memory) == ("", None)
        assert set(row.time) == set(row.share) == parts
        for i in range(2):  # the parts are the call, and before_llm is what comes first
            share = {part: timing.ratios[i] for part, timing in row.share.items()}
            whole = share["encoder"] + share["rest"] + share["prefill"]
            assert whole == pytest.approx(share["first_token"])
            assert sum(share[part] for part in {*alone, "selection"}) == pytest.approx(whole)
            assert share["encoder"] < share["before_llm"] < whole - share["prefill"]
    for part in parts - {"selection"}:
        assert bare.time[part].ratios == (1, 1)
    for row in (bare, again):
        assert row.floor == {"encoder": 1, "prefill": 1, "first_token": 1}
        assert row.time["selection"].ratio == 0
        assert (row.tokens, row.prompt, row.keep) == ((81,), 83, None)
    assert evoprune.time["selection"].ratio > 0
    assert evoprune.share["selection"].ratio < evoprune.share["encoder"].ratio
    assert fastv.share["selection"].ratio < fastv.share["prefill"].ratio
    assert fastv.share["encoder"] == fastv.share["encoder_alone"]
    assert (evoprune.tokens, evoprune.prompt) == ((20,), 73)
    assert (fastv.tokens, fastv.prompt) == ((81,), 83)
    assert evoprune.efficiency("encoder") == pytest.approx(
        evoprune.floor["encoder"] / evoprune.time["encoder"].ratio
    )
    assert evoprune.efficiency("rest") is None


def test_one_that_fails_is_a_row_that_says_why(tower):
    def broken(model, tick):
        model.forward = lambda **given: 1 / 0

    candidates = [recipe("evoprune", 2), recipe("divprune"), Candidate("broken", broken)]
    _, *failed, tome, _ = run(tower, [*candidates, recipe("tome")], rounds=1).rows
    said = ("keep=2 of 81 tokens", "Stage.PROJECTED", "ZeroDivisionError: division by zero")
    for row, words in zip(failed, said, strict=True):
        assert words in row.problem
        assert not row.time
    assert not tome.problem
    assert tome.time


def test_a_bare_model_that_fails_is_an_error(tower):
    def broken(**given):
        raise BudgetError("no")

    model = copy_of(tower.model)
    model.forward = broken
    with pytest.raises(BudgetError, match="no"):
        run(replace(tower, model=model), [recipe("tome")], rounds=1)


def test_third_party_code_is_a_candidate(tower):
    def slow(model, tick):
        def wait(module, args):
            tick()
            time.sleep(0.05)
            tick()

        model.encoder.layers[0].register_forward_pre_hook(wait)

    candidates = [Candidate("slow", slow, floor=0.5), recipe("tome")]
    _, theirs, ours, _ = run(tower, candidates, rounds=2).rows
    assert (theirs.floor, theirs.tokens) == ({"encoder": 0.5}, ())
    # On a busy machine a bare call can take as long as the wait: only of the same call something is known.
    assert theirs.time["encoder"].ratio > theirs.time["selection"].ratio > 0
    assert ours.time["selection"].ratio > 0
    assert not hasattr(tower.model, "_tokenzoo_attached")


def test_models_share_their_weights_and_nothing_else(tower):
    one, other = copy_of(tower.model), copy_of(tower.model)
    assert all(a is b for a, b in zip(one.parameters(), other.parameters(), strict=True))
    tokenzoo.build("tome").attach(one)
    assert hasattr(one, "_tokenzoo_attached")
    assert not hasattr(other, "_tokenzoo_attached")
    assert torch.equal(tower.run(other)()[0], tower.run(tower.model)()[0])


def test_a_model_that_nothing_knows_is_measured_all_the_same():
    work, candidates = load("resnet18"), [recipe("tome"), Candidate("theirs", nothing)]
    bare, tome, theirs, _ = run(work, candidates, rounds=1).rows
    assert "ResNet" in tome.problem
    assert (bare.floor, bare.tokens) == ({}, ())
    assert theirs.time["encoder"].ratio > 0


@pytest.mark.parametrize("name", ["clip-l-336", "llava-1.5-7b"])
def test_compiled_models_against_compiled_ones(monkeypatch, name):
    plain = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", plain)
    work = load(name, Sizes(tiny=True, depth=2, layers=1 if "llava" in name else None))
    table = run(work, [recipe("random")], mode="compile", rounds=1)
    bare, random, _ = table.rows
    assert not random.problem
    assert "selection" not in random.time  # it is part of what is compiled
    assert random.time["encoder"].ratio > 0
    assert random.floor["encoder"] < bare.floor["encoder"] == 1


def nothing(model, tick) -> None:
    """Theirs is the bare model."""


BAD = [
    (lambda work: run(work, []), "number of candidates=0"),
    (lambda work: run(work, [recipe("tome"), recipe("tome")]), r"'tome'.* twice .*keep=0\.5"),
    (lambda work: run(work, [recipe("tome")], rounds=0), "rounds=0"),
    (lambda work: run(work, [recipe("tome")], mode="graph"), "mode='graph' on cpu"),
    (lambda work: run(work, [recipe("tome")], mode="fast"), "mode='fast'"),
    (lambda work: Candidate("bare", nothing), "called 'bare'"),
    (lambda work: Candidate("x", 3), "prepare=3"),
    (lambda work: Candidate("x", nothing, 0), "keep=0"),
]


@pytest.mark.parametrize(("make", "named"), BAD)
def test_what_makes_no_sense_is_refused(tower, make, named):
    with pytest.raises(BadArgumentError, match=named):
        make(tower)


def test_the_unfused_importance_chooses_as_the_fused_one(tower):
    kept = []
    for zoo in (tokenzoo.build("evoprune", keep=30), unfused(30)):
        model = copy_of(tower.model)
        with zoo.attach(model, trace=True) as attached:
            tower.run(model)()
            kept.append(attached.record)
    assert torch.equal(kept[0].dst, kept[1].dst)


def test_it_says_no_to_a_packed_tower():
    # No tiny image has so many tokens that one of them would be held.
    work = load("qwen2.5-vl-0.5b", Sizes(tiny=True, frames=2, depth=4))
    _, row, _ = run(work, [Candidate("map", attaching(unfused(0.75)), 0.75)], rounds=1).rows
    assert "packs them into a sequence" in row.problem
