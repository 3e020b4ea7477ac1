"""The documents keep up with the code: names, hooks, commands and examples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch

import tokenzoo
from tokenzoo import hookspecs, plugins

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PARTS = (ROOT / "docs" / "parts.md").read_text()


@pytest.mark.parametrize("kind", [kind for kind in plugins.KINDS if kind != "recipes"])
def test_every_registered_part_is_in_the_tables(kind):
    names = plugins.names(kind)
    assert names
    missing = [name for name in names if f"| `{name}` |" not in PARTS]
    assert not missing


def test_the_recipes_of_the_readme_work_where_it_says():
    """All of them are in docs/recipes/README.md, which is made from the code."""
    table = README.partition("## The recipes")[2]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", table, re.MULTILINE)
    assert len(rows) >= 20
    for name, where in rows:
        stage = tokenzoo.build(name).recipe.steps[0].stage.name
        assert where.rstrip("s") == stage.rstrip("s"), name
    assert "(docs/recipes/README.md)" in README


def test_nothing_that_users_read_imports_a_private_module():
    shown = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.py")]
    assert len(shown) > 15
    private = re.compile(r"(?:from|import) tokenzoo(?:_adapters)?(?:\.\w+)*\._")
    assert not [path.name for path in shown if private.search(path.read_text())]


def test_every_hook_is_documented():
    hooks = [name for name in vars(hookspecs) if name.startswith("tokenzoo_")]
    assert len(hooks) == 7
    for name in hooks:
        assert f"`{name}" in PARTS
        assert getattr(hookspecs, name).__doc__


def test_every_option_of_evoprune_that_the_paper_leaves_open_is_documented():
    text = (ROOT / "docs" / "evoprune.md").read_text()
    described = tokenzoo.describe("evoprune")
    for option in re.findall(r"^  (\w+) = ", described, re.MULTILINE):
        if option not in ("keep", "schedule", "beta"):
            assert f"`{option}" in text, option


def test_the_scorer_in_ten_lines_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (block,) = [text for text in blocks if "class Energy" in text]
    vit = timm.create_model("vit_tiny_patch16_224", depth=4, num_classes=3).eval()
    exec(block, {"vit": vit, "__name__": "readme"})
    assert vit(torch.randn(1, 3, 224, 224)).shape == (1, 3)
    assert vit._tokenzoo_attached.counts[-1] == 98


def test_the_commands_are_there_for_ci():
    test = "pip install -c constraints.txt '.[dev]' && pytest -n 2 --dist loadfile"
    for name, command in (("demo", "pip install '.[demo]' && tokenzoo demo"), ("test", test)):
        assert f"<!-- {name} -->\n```sh\n{command}\n```" in README


def test_the_two_lines_of_the_readme_are_one_recipe():
    lines = re.findall(r"^tokenzoo\.build\((.*?)\)\.attach\(vit\)", README, re.MULTILINE)
    assert lines[:2] == ['"evoprune", keep=0.25', '"evoprune", ctr=0.25']
    by_keep, by_ctr = (eval(f"tokenzoo.build({line})").recipe for line in lines[:2])
    assert by_keep == by_ctr
    assert by_keep.steps[0].matcher.protect.share == by_keep.keep == 0.25


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path):
    text = path.read_text()
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert text.startswith("# ") if path.parent != ROOT else len(targets) > 5
    for target in targets:
        assert (path.parent / target).exists(), target


def test_each_way_of_running_is_held_by_the_tests_that_it_names():
    table = (ROOT / "docs" / "attaching.md").read_text().partition("## Ways of running")[2]
    rows = [row for row in table.splitlines() if row.startswith("| ") and "test_" in row]
    assert len(rows) >= 14
    for part in (part for row in rows for part in row.split(" | ")[-1].split(";")):
        path, *names = re.findall(r"`([\w/.]+)`", part)
        text = (ROOT / "tests" / path).read_text()
        assert names, part
        assert set(names) <= set(re.findall(r"^def (test_\w+)", text, re.MULTILINE)), part
