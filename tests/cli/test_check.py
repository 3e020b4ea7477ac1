"""`tokenzoo check`: every property is named and tried, and the exit code says what came out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from inspect import signature
from types import ModuleType

import pytest

import tokenzoo
from tests.cli.calling import call, done
from tokenzoo import plugins, testing
from tokenzoo.cli.check import EXAMPLES
from tokenzoo.scorers import FeatureNorm
from tokenzoo.tokens import full_precision

GOOD = "tokenzoo.scorers:FeatureNorm"


@dataclass(frozen=True)
class Undeclared(tokenzoo.Scorer):
    """Reads the CLS attention, and does not say so."""

    def score(self, evidence):
        return full_precision(evidence.cls_attention).mean(1)


def checked(*arguments):
    return call("check", "--examples", "2", *arguments)


def binding(kind):
    return [name for name, prop in testing.PROPERTIES.items() if kind in prop.binds]


def marked(output):
    """The marks with the names after them, in the order in which they were printed."""
    return [line.split()[:2] for line in output.splitlines() if line[:1] in ("✓", "✗")]


@pytest.fixture
def mine(monkeypatch):
    """A module of somebody's, which is no package's."""
    module = ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", module)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return module


def test_every_law_of_its_kind_is_named_with_its_promise_and_a_tick():
    result = checked(GOOD)
    assert result.exit_code == 0, result.output
    assert marked(result.stdout) == [["✓", name] for name in binding("scorer")]
    assert result.stdout.startswith("FeatureNorm(on='x', power=2), scorer: ")
    together = " ".join(result.stdout.split())
    assert testing.PROPERTIES["exact_budget"].promise in together
    assert result.stderr == ""


def test_a_broken_law_is_exit_code_1_and_the_lesson_is_printed(mine):
    mine.Part = Undeclared
    result = checked("mine:Part")
    assert result.exit_code == 1
    assert [name for _, name in marked(result.stdout)] == binding("scorer")
    assert [name for mark, name in marked(result.stdout) if mark == "✗"] == ["needs_honest"]
    lesson = result.stdout.partition("\n\n")[2]
    with pytest.raises(testing.PropertyViolation) as error:
        testing.check(Undeclared(), "needs_honest", examples=2)
    assert str(error.value) in lesson
    for part in ("expected: ", "found: ", "smallest example:", "read: docs/testing.md"):
        assert part in lesson


def test_an_instance_a_class_a_factory_a_recipe_and_what_is_inside(mine):
    mine.inner = ModuleType("mine.inner")
    mine.inner.part = FeatureNorm("keys")
    mine.make = lambda: FeatureNorm("queries")
    mine.recipe = tokenzoo.build("uniform").recipe
    mine.zoo = tokenzoo.build("uniform")
    for path, shown in {
        "inner.part": "FeatureNorm(on='keys', power=2), scorer",
        "make": "FeatureNorm(on='queries', power=2), scorer",
        "recipe": "Recipe(",
        "zoo": "Recipe(",
    }.items():
        result = checked(f"mine:{path}")
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith(shown)


def test_all_that_have_a_name_are_checked():
    result = checked("random")
    assert result.exit_code == 0, result.output
    assert [name for _, name in marked(result.stdout)] == [*binding("scorer"), *binding("recipe")]


def test_a_plugins_part_has_a_name_like_ours():
    class Plugin:
        @staticmethod
        @tokenzoo.hookimpl
        def tokenzoo_scorers():
            return {"lying": Undeclared}

    with plugins.registered(Plugin()):
        assert checked("lying").exit_code == 1


def test_a_module_in_this_folder_is_found(mine, tmp_path, monkeypatch):
    del mine
    monkeypatch.chdir(tmp_path)
    code = "from tokenzoo.scorers import FeatureNorm as Part\n"
    (tmp_path / "tokenzoo_lies_here.py").write_text(code)
    result = checked("tokenzoo_lies_here:Part")
    assert result.exit_code == 0, result.output
    del sys.modules["tokenzoo_lies_here"]


def test_as_many_examples_are_tried_as_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(testing, "check", lambda *names, examples: asked.append(examples))
    assert call("check", GOOD, "--examples", "7").exit_code == 0
    assert asked == [7] * len(binding("scorer"))


def test_the_number_of_examples_is_the_kits():
    assert signature(testing.check).parameters["examples"].default == EXAMPLES
    assert str(EXAMPLES) in done("check", "--help").stdout
    assert call("check", GOOD, "--examples", "0").exit_code == 2
