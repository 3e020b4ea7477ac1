"""Every registered recipe keeps every property, and so does any well-formed one out of registered parts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.properties.instances import EXAMPLES, PLANNED, RECIPES, binding, cases
from tokenzoo import Recipe, Stage, Step, mergers, schedules
from tokenzoo.errors import MissingEvidenceError
from tokenzoo.matchers import Bipartite
from tokenzoo.scorers import Similarity
from tokenzoo.testing import PROPERTIES, Example, check, check_recipe, examples, recipes, towers
from tokenzoo.testing.subjects import needs_all

CASES = {"examples": examples(max_tokens=16), "towers": towers(max_tokens=32, max_depth=6)}


@pytest.mark.parametrize(
    ("recipe", "prop", "examples"),
    list(cases({name: (recipe,) for name, recipe in RECIPES.items()})),
)
def test_recipes_have_the_properties(recipe: Recipe, prop: str, examples: int) -> None:
    check(recipe, prop, examples=examples, max_tokens=16)
    assert prop in binding(recipe)


@pytest.mark.parametrize(
    "prop", [name for name, prop in PROPERTIES.items() if prop.cases == "towers"]
)
@pytest.mark.parametrize("name", PLANNED)
def test_other_plans_have_the_properties(name: str, prop: str) -> None:
    check(PLANNED[name], prop, examples=EXAMPLES)
    assert prop in binding(PLANNED[name])


@pytest.mark.parametrize("name", PLANNED)
def test_a_recipe_of_several_steps_or_without_keep_is_checked_whole(name: str) -> None:
    check_recipe(PLANNED[name], examples=3)
    assert not PROPERTIES["repr_is_code"](PLANNED[name])


@pytest.mark.parametrize("prop", binding(RECIPES["tome"]))
def test_any_recipe_has_the_properties(prop: str) -> None:
    tried = 0

    @settings(max_examples=EXAMPLES)
    @given(st.data())
    def on(data: Any) -> None:
        nonlocal tried
        tried += 1
        recipe = data.draw(recipes())
        drawn = CASES.get(PROPERTIES[prop].cases)
        PROPERTIES[prop](recipe, *([] if drawn is None else [data.draw(drawn)]))

    on()
    assert tried >= EXAMPLES


def test_two_classes_of_one_name_are_let_off_but_saved() -> None:
    recipe = Recipe(
        Step(Stage.BLOCK, schedules.Mean(), Bipartite(Similarity("x")), mergers.Mean()), keep=0.5
    )
    check(recipe, "repr_is_code", "saved_and_loaded")
    assert repr(recipe).count("Mean()") == 2


@pytest.mark.parametrize(
    "name", [name for name, made in RECIPES.items() if needs_all(made) and len(made.steps) == 1]
)
def test_protecting_some_of_a_grid_is_refused(name: str) -> None:
    """A subset of the tokens has no grid, frames or softmax: an error, and not a wrong result."""
    example = Example.drawn(grid=(3, 4))
    recipe = Recipe(*RECIPES[name].steps, keep=11)
    missing = sorted(recipe.needs & {"grid", "frames", "attention"})
    assert missing
    # What is to be left out is named, too, since the grid was given.
    with pytest.raises(MissingEvidenceError, match=".*".join([*missing, "protected"])):
        example.reduce(recipe, protected=example.protected)
