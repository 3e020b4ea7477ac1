"""Old public names work for one version, and say what they are called now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tokenzoo
from tests.mutants.matchers import FirstTokens
from tokenzoo import mergers, scorers, testing


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


ATS = tokenzoo.build("ats", attention_source="received", match_reference=True)
OPTIONS = {"attention_source": "by", "match_reference": "faithful"}


@pytest.mark.parametrize(
    ("method", "old_names"),
    [
        (tokenzoo.build(tokenzoo.build("fastv").recipe), {"identity": "keep"}),
        (
            tokenzoo.build(tokenzoo.build("kmedoids").recipe),
            {"negative_squared_distance": "nearness"},
        ),
        (ATS, OPTIONS),
        (tokenzoo.build(ATS.recipe), OPTIONS),
    ],
)
def test_a_recipe_file_with_old_names_is_read(
    method: Any, old_names: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "recipe.json"
    method.save(path)
    text = path.read_text()
    for new, old in old_names.items():
        text = text.replace(f'"{new}"', f'"{old}"')
    path.write_text(text)
    with pytest.warns(DeprecationWarning, match="is called") as caught:
        assert tokenzoo.load(path).recipe == method.recipe
    said = "".join(str(warning.message) for warning in caught)
    for new, old in old_names.items():
        assert f"'{old}'" in said
        assert f"is called '{new}' now" in said


def test_old_options_of_a_recipe_warn_and_are_the_new_ones() -> None:
    with pytest.warns(DeprecationWarning, match="old name goes") as caught:
        old = tokenzoo.build("ats", by="received", faithful=True)
    assert old == ATS
    assert [str(warning.message).partition(" now")[0] for warning in caught] == [
        f"the option '{old}' of ats is called '{new}'" for new, old in OPTIONS.items()
    ]
    assert {warning.filename for warning in caught} == {__file__}


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
