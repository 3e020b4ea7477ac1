"""Old public names work for one version, and say what they are called now."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tokenzoo
from tests.mutants.matchers import FirstTokens
from tokenzoo import mergers, scorers, testing
from tokenzoo.errors import BadArgumentError


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        (tokenzoo, "Budget", "TokenBudget"),
        (tokenzoo, "Plan", "TokenMap"),
        (tokenzoo, "Zoo", "Method"),
        (mergers, "Keep", "Identity"),
        (scorers, "Nearness", "NegativeSquaredDistance"),
        (testing, "LAWS", "PROPERTIES"),
        (testing, "LawBroken", "PropertyViolation"),
    ],
)
def test_an_old_name_warns_and_is_the_new_one(module: Any, old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{module.__name__}.{new}"):
        found = getattr(module, old)
    assert found is getattr(module, new)


@pytest.mark.parametrize(
    ("recipe", "old", "new"),
    [("fastv", "keep", "identity"), ("kmedoids", "nearness", "negative_squared_distance")],
)
def test_a_recipe_file_with_an_old_name_is_read(
    recipe: str, old: str, new: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.json"
    made = tokenzoo.build(tokenzoo.build(recipe).recipe)
    made.save(path)
    text = path.read_text()
    path.write_text(text.replace(f'"{new}"', f'"{old}"'))
    assert json.loads(path.read_text()) != json.loads(text)
    with pytest.warns(DeprecationWarning, match=f"'{old}' is called '{new}' now"):
        assert tokenzoo.load(path).recipe == made.recipe


def test_old_options_of_a_recipe_warn_and_are_the_new_ones() -> None:
    new = tokenzoo.build("ats", attention_source="received", match_reference=True)
    with pytest.warns(DeprecationWarning, match="old name goes") as caught:
        old = tokenzoo.build("ats", by="received", faithful=True)
    assert old == new
    assert [str(warning.message).partition(" now")[0] for warning in caught] == [
        "the option 'by' of ats is called 'attention_source'",
        "the option 'faithful' of ats is called 'match_reference'",
    ]
    assert {warning.filename for warning in caught} == {__file__}
    with pytest.raises(BadArgumentError, match="by= and attention_source="):
        tokenzoo.build("ats", by="cls", attention_source="cls")


@pytest.mark.parametrize("by_name", [False, True])
def test_a_recipe_file_with_old_options_is_read(by_name: bool, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    made = tokenzoo.build("ats", attention_source="received", match_reference=True)
    (made if by_name else tokenzoo.build(made.recipe)).save(path)
    text = path.read_text().replace("attention_source", "by").replace("match_reference", "faithful")
    path.write_text(text)
    with pytest.warns(DeprecationWarning, match="old name goes") as caught:
        assert tokenzoo.load(path).recipe == made.recipe
    assert len(caught) == 2


def test_a_matcher_takes_and_gives_the_old_name() -> None:
    with pytest.warns(DeprecationWarning, match="Halves.fewest is called Halves.min_tokens"):

        @dataclass(frozen=True)
        class Halves(FirstTokens):
            def fewest(self, tokens: int, prefix: int = 0) -> int:
                del prefix
                return (tokens + 1) // 2

    assert Halves().min_tokens(9) == Halves().fewest(9) == 5
    old: Any = FirstTokens()
    with pytest.warns(DeprecationWarning, match="Matcher.fewest is called Matcher.min_tokens"):
        assert old.fewest(9) == 1
