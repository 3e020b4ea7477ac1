"""The measurement of selections: every recipe can be measured, and loops are seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import selection_time as bench
import torch

import tokenzoo

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "HEADS", 2)
    monkeypatch.setattr(bench, "WIDTH", 8)
    monkeypatch.setattr(bench, "CHANNELS", 16)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", tokenzoo.list_recipes())
def test_every_recipe_is_given_what_it_needs(name: str) -> None:
    zoo = bench.one_step(name, 60, 12)
    reduced = zoo.reduce(**bench.shown(zoo, 60, 2))
    kept = zoo.recipe.wanted(60)
    assert reduced.x.shape == (2, 1 + kept, 16)
    assert kept == max(12, zoo.recipe.steps[0].matcher.min_tokens(60, 1))


def test_loops_are_seen() -> None:
    assert bench.loops("divprune", 64, 8)["per token kept"] >= 1  # one step per token, as it must
    assert bench.loops("divprune", 64, 8)["per image"] < 8  # but not one per token and image
    assert bench.loops("fastervlm", 64, 8)["per token kept"] == 0


def test_the_file_says_what_was_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "times.json"
    names = ["divprune", "tome"]
    bench.main(["--recipes", *names, "--tokens", "16", "30", "--rounds", "2", "--out", str(out)])
    content = json.loads(out.read_text())
    assert content["command"].startswith("python benchmarks/selection_time.py --recipes divprune")
    assert content["threads"] == 1
    assert [(row["recipe"], row["tokens"], row.get("keep")) for row in content["rows"]] == [
        *[("divprune", 16, 3), ("tome", 16, 8), ("block again", 16, None)],
        *[("divprune", 30, 6), ("tome", 30, 15), ("block again", 30, None)],
    ]
    for row in content["rows"]:
        low, high = row["quartiles"]
        assert 0 < low <= row["median"] <= high
    assert "| divprune | 16 | 3 | " in capsys.readouterr().out


def test_the_results_are_of_every_recipe_of_the_zoo() -> None:
    """The committed figures; a recipe without is one that was added since: run the script again."""
    path = ROOT / "docs" / "results" / "selection-time-cpu.json"
    rows = json.loads(path.read_text())["rows"]
    measured = {(row["recipe"], row["tokens"]) for row in rows}
    for name in tokenzoo.list_recipes():
        assert {(name, 576), (name, 2880)} <= measured, name
    loops = {row["recipe"] for row in rows if abs(row.get("per token kept", 0)) >= 1}
    names = ("divprune", "cdpruner", "idpruner", "vispruner", "flashvid", "moviechat")
    assert loops == {*names}  # as docs/recipes/README.md says
