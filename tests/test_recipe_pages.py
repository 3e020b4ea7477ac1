"""The pages about recipes: made from the code as it is now, and loud where a docstring lacks something."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

import tokenzoo
from benchmarks import make_recipe_pages
from tokenzoo import plugins
from tokenzoo.errors import BadArgumentError, UnknownNameError
from tokenzoo.recipes.divprune import divprune
from tokenzoo.tools import recipe_pages

FORM = """Keep some.

Those that are
good.

Formula:
    score_j = |x_j|
      (two lines)

Args:
    keep: how many, 1 | 2 ... (paper: 0.1; or so)
        (ours)
    at: where (as an index). (open)

Departures:
    None.

Licence:
    MIT (a/b)

Reference:
    Some, 2024, arXiv 2401.00001
"""


def plugin(doc):
    def some(*, keep=0.5, at=None):
        del at
        return divprune(keep=keep)

    some.__doc__ = textwrap.indent(doc, "    ").lstrip()

    class Plugin:
        @staticmethod
        @tokenzoo.hookimpl
        def tokenzoo_recipes():
            return {"some": some}

    return plugins.registered(Plugin())


# --- docs/recipes


def test_the_pages_are_what_the_script_makes_now() -> None:
    made = make_recipe_pages.make()
    assert {f"{name}.md" for name in tokenzoo.list_recipes()} < {*made}
    assert {path.name for path in make_recipe_pages.FOLDER.glob("*.md")} == {*made, "matrix.md"}
    stale = [
        name for name, text in made.items() if (make_recipe_pages.FOLDER / name).read_text() != text
    ]
    assert not stale, f"run `{make_recipe_pages.COMMAND}`"


@pytest.mark.parametrize("name", tokenzoo.list_recipes())
def test_a_page_says_what_the_recipe_is(name) -> None:
    text = recipe_pages.page(name, models={"a model": "runs"}, cost="dear")
    assert text.startswith(f"# `{name}`\n")
    recipe = tokenzoo.build(name).recipe
    for step in recipe.steps:
        assert repr(step.matcher) in text
        assert all(f"`{need}`" in text for need in step.needs)
    for option in recipe_pages.parse_docstring(name).options:
        assert f"\n| `{option}` | " in text
    for title in ("Options", "Parts", "Models", "What the selection costs"):
        assert f"\n## {title}\n" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in lines)


def test_the_table_links_every_page() -> None:
    table = recipe_pages.index(["tome", "pool"])
    assert "| [`tome`](tome.md) | block | `keys` | Merge the tokens" in table
    assert "| [`pool`](pool.md) | block | `grid` | Average" in table
    assert table.endswith("| control |")


# --- the form


def test_a_plugin_has_a_page_by_calling_the_function() -> None:
    with plugin(FORM):
        told = recipe_pages.parse_docstring("some")
        text = recipe_pages.page("some")
    assert (told.summary, told.idea) == ("Keep some.", "Those that are\ngood.")
    assert told.formula == "score_j = |x_j|\n  (two lines)"
    assert told.options == {
        "keep": ("how many, 1 | 2 ...", "paper: 0.1; or so; ours"),
        "at": ("where (as an index).", "open"),
    }
    assert "```text\nscore_j = |x_j|\n  (two lines)\n```" in text
    assert "| `keep` | `0.5` | how many, 1 \\| 2 ... | paper: 0.1; or so; ours |" in text
    assert (
        "| reference | Some, 2024, [arXiv 2401.00001](https://arxiv.org/abs/2401.00001) |" in text
    )
    assert "## Models" not in text


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("Those that are\ngood.\n\n", "", "lacks a paragraph of the idea"),
        ("Formula:\n    score_j = |x_j|\n      (two lines)\n\n", "", "lacks Formula:"),
        ("    score_j = |x_j|\n      (two lines)\n", "", "lacks Formula:"),
        ("Departures:\n    None.\n\n", "", "lacks Departures:"),
        ("Licence:\n    MIT (a/b)\n\n", "", "lacks Licence:"),
        ("Reference:\n    Some, 2024, arXiv 2401.00001\n", "", "lacks Reference:"),
        ("    at: where (as an index). (open)\n", "", "lacks at under Args:"),
        ("    at:", "    of: which.\n    at:", "has of, which is no option"),
        ("Departures:", "Note:", "has Note:, which is no section"),
        (
            "    None.\n",
            "    None.\n\nAnd more\nof it.\n",
            "has 'And more' outside of the sections",
        ),
        (FORM, "", "lacks its first line"),
    ],
)
def test_what_a_docstring_lacks_is_said(old, new, complaint) -> None:
    assert old in FORM
    with plugin(FORM.replace(old, new)), pytest.raises(BadArgumentError) as caught:
        recipe_pages.page("some")
    assert complaint in str(caught.value)
    assert "'some'" in str(caught.value)
    assert "divprune.py" in str(caught.value)


def test_a_recipe_that_is_not_there_has_no_page() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'divprune'"):
        recipe_pages.page("divprun")


def test_the_script_names_every_docstring_that_lacks_something(monkeypatch) -> None:
    monkeypatch.setattr(make_recipe_pages, "ours", lambda: ["tome", "some", "pool"])
    with plugin(FORM.replace("Licence", "License")), pytest.raises(SystemExit) as caught:
        make_recipe_pages.main()
    assert "'some'" in str(caught.value)
    assert "lacks Licence:" in str(caught.value)


def test_the_script_reads_the_table_of_models_and_the_costs() -> None:
    table = (
        "# A\n\ntext\n\n| recipe | ViT | CLIP |\n|---|---|---|\n| `tome` | runs | needs keys |\n"
    )
    assert make_recipe_pages.matrix(table) == {"tome": {"ViT": "runs", "CLIP": "needs keys"}}
    assert make_recipe_pages.matrix("none") == {}
    row = {"recipe": "tome", "tokens": 2880, "keep": 576, "median": 1.234, "operations": 17}
    content = {"threads": 1, "rows": [{**row, "quartiles": [1, 2]}]}
    assert "| 2,880 | 576 | 1.23 (1.00 to 2.00) | 17 |" in make_recipe_pages.cost("tome", content)
    assert make_recipe_pages.cost("pool", content) == ""
    other = {**row, "tokens": 576, "keep": 115, "per token kept": 12.6, "quartiles": [1, 2]}
    content["rows"].append(other)
    table = make_recipe_pages.prices(content)
    assert "| recipe | of 576: kept | time | operations | of 2,880: kept | " in table
    assert table.endswith("| `tome` | 115 | 1.23 | 17 | 576 | 1.23 | 17 | 13 |")
    assert make_recipe_pages.prices({"rows": []}) == ""


def test_no_reference_is_told_twice() -> None:
    """A number of the arXiv stands in the docstring of the function, and nowhere else in its file."""
    for name in make_recipe_pages.ours():
        path = plugins.find("recipes", name).__code__.co_filename
        text = Path(path).read_text()
        for number in re.findall(r"\d{4}\.\d{5}", recipe_pages.parse_docstring(name).reference):
            assert text.count(number) == 1, (name, number)
