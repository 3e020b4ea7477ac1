"""Old public names work for one version, and say what they are called now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tokenzoo
from tokenzoo import mergers, scorers


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        (tokenzoo, "Budget", "TokenBudget"),
        (tokenzoo, "Plan", "TokenMap"),
        (tokenzoo, "Zoo", "Method"),
        (mergers, "Keep", "Identity"),
        (scorers, "Nearness", "NegativeSquaredDistance"),
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
