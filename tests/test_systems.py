"""Each command of docs/systems.md is one that runs: its recipe attaches to its model."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tokenzoo
from tokenzoo.cli import app
from tokenzoo.tools.benchmark.shapes import load
from tokenzoo.tools.benchmark.workload import Sizes, Workload

PAGE = (Path(__file__).parent.parent / "docs" / "systems.md").read_text()
COMMANDS = re.findall(r"`tokenzoo bench (\S+) --recipe (\w+) --tiny(?: --(\w+) (\d+))?`", PAGE)
CONTROLS = {"random", "uniform", "pool", "downsample", "every_kth_frame"}
OURS = {"evoprune_over_time", "kmedoids", "topk"}
"""Recipes that are no system: compositions and baselines of comparisons."""


@cache
def tiny(name: str, **sizes: int) -> Workload:
    return load(name, Sizes(tiny=True, **sizes))


@pytest.mark.parametrize(
    ("model", "recipe", "option", "value"), COMMANDS, ids=[one[1] for one in COMMANDS]
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # weights that are not trained; the budget
def test_the_recipe_attaches(model: str, recipe: str, option: str, value: str) -> None:
    sizes = {option: int(value)} if option else {}
    with tokenzoo.build(recipe).attach(tiny(model, **sizes).model) as attached:
        assert attached.installed


def test_every_recipe_is_a_row_once() -> None:
    listed = [recipe for _, recipe, _, _ in COMMANDS]
    assert sorted(listed) == sorted(set(tokenzoo.list_recipes()) - CONTROLS - OURS)


@pytest.mark.parametrize("arguments", [COMMANDS[0], COMMANDS[-1]], ids=["image", "video"])
def test_a_command_as_it_is(arguments: tuple[str, ...]) -> None:
    model, recipe, *_ = arguments
    given = ["bench", model, "--recipe", recipe, "--tiny", "--rounds", "1"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert recipe in result.output
