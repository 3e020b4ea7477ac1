"""The pages about recipes: made from the code as it is now, and loud where a docstring lacks something."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

import tokenzoo
from benchmarks import make_recipe_pages
from tests.refusals import refused
from tokenzoo import plugins
from tokenzoo.errors import UnknownNameError
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
def test_what_a_docstring_lacks_is_said(
    old: str, new: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the page, and by the script that makes all of them."""
    assert old in FORM
    monkeypatch.setattr(make_recipe_pages, "ours", lambda: ["tome", "some", "pool"])
    with plugin(FORM.replace(old, new)):
        refused(lambda: recipe_pages.page("some"), complaint, "'some'", "divprune.py")
        with pytest.raises(SystemExit, match=f"'some'.*{re.escape(complaint)}"):
            make_recipe_pages.main()


def test_a_recipe_that_is_not_there_has_no_page() -> None:
    refused(lambda: recipe_pages.page("divprun"), "'divprune'", kind=UnknownNameError)


def test_what_nobody_has_measured_has_no_table() -> None:
    assert make_recipe_pages.cost("pool", {"rows": [{"recipe": "tome"}]}) == ""
    assert make_recipe_pages.prices({"rows": []}) == ""
    assert make_recipe_pages.matrix("none") == {}


def test_no_reference_is_told_twice() -> None:
    """A number of the arXiv stands in the docstring of the function, and nowhere else in its file."""
    for name in make_recipe_pages.ours():
        path = plugins.find("recipes", name).__code__.co_filename
        text = Path(path).read_text()
        for number in re.findall(r"\d{4}\.\d{5}", recipe_pages.parse_docstring(name).reference):
            assert text.count(number) == 1, (name, number)
