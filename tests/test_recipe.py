"""Recipes: frozen, checked when they are made, and shown as code that makes them again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch

import tokenzoo
from tests.mutants import Blurs
from tokenzoo import Recipe, Stage, Step, TokenMap, matchers, mergers, parts, schedules, scorers
from tokenzoo.errors import BadArgumentError, BudgetError
from tokenzoo.matchers import Bipartite, Drop, SelectAssign, Strided, TopK
from tokenzoo.mergers import Identity, WeightedMean
from tokenzoo.schedules import Mean, Once, PerBlock, Skip
from tokenzoo.scorers import CLSAttention, FeatureNorm, Similarity

STEP = Step(Stage.BLOCK, Skip(), Bipartite(Similarity("keys")), WeightedMean())
SELECT = SelectAssign(TopK(CLSAttention(layer=-2)), Drop())
LAST = Step(Stage.FEATURES, Once(), SELECT, Identity())

NAMES: dict[str, Any] = {
    name: value
    for module in (matchers, mergers, scorers, schedules, parts, tokenzoo)
    for name, value in vars(module).items()
    if not name.startswith("_")
}
NAMES["rest"] = matchers.REST


# ------------------------------------------------------------------------------------ stages


def test_stages_are_shown_as_they_are_written() -> None:
    assert repr(Stage.BLOCK) == "Stage.BLOCK"
    assert repr(Stage.LLM(16)) == "Stage.LLM(16)"
    assert Stage.LLM(16) == Stage("llm", 16) != Stage.LLM
    for name in Stage.NAMES:
        stage = Stage(name)
        assert eval(repr(stage), NAMES) == stage == getattr(Stage, name.upper())


def test_stages_are_in_the_order_of_the_data() -> None:
    order = [Stage.IMAGE, Stage.EMBEDDED, Stage.BLOCK, Stage.BLOCK(0), Stage.BLOCK(3)]
    order += [Stage.FEATURES, Stage.PROJECTED, Stage.LLM, Stage.LLM(2), Stage.LLM(16)]
    assert sorted(order, key=lambda stage: stage.order) == order


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Stage("tower"), ["'tower'", "image, embedded, block, features, projected, llm"]),
        (lambda: Stage.IMAGE(1), ["'image'", "'block' and 'llm'"]),
        (lambda: Stage.FEATURES(0), ["'features'", "'block' and 'llm'"]),
        (lambda: Stage("block", "last"), ["layer='last'", "int"]),
        (lambda: Stage.LLM(True), ["layer=True", "int"]),
        (lambda: Stage("image", 1), ["'image'", "'block' and 'llm'"]),
    ],
)
def test_bad_stages(make: Callable[[], object], named: list[str]) -> None:
    with pytest.raises(BadArgumentError) as caught:
        make()
    assert all(part in str(caught.value) for part in named), str(caught.value)


# ------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize(
    ("parts", "options", "named"),
    [
        (("block", Skip(), SELECT, Identity()), {}, ["stage='block'", "Stage"]),
        ((Stage.BLOCK, "skip", SELECT, Identity()), {}, ["schedule='skip'", "Schedule"]),
        ((Stage.BLOCK, Skip, SELECT, Identity()), {}, ["schedule=<class", "Schedule"]),
        ((Stage.BLOCK, Skip(), TopK(FeatureNorm()), Identity()), {}, ["matcher=TopK", "Matcher"]),
        ((Stage.BLOCK, Skip(), SELECT, Drop()), {}, ["merger=Drop()", "Merger"]),
        ((Stage.BLOCK, SELECT, Skip(), Identity()), {}, ["schedule=SelectAssign", "Schedule"]),
        ((Stage.BLOCK, Skip(), SELECT, Identity()), {"positions": "new"}, ["'new'", "'compact'"]),
        ((Stage.BLOCK, Skip(), SELECT, Identity()), {"prefix": "cut"}, ["'cut'", "'drop'"]),
    ],
)
def test_bad_steps(parts: tuple[Any, ...], options: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(BadArgumentError) as caught:
        Step(*parts, **options)
    assert all(part in str(caught.value) for part in named), str(caught.value)


def test_a_step_knows_what_its_parts_need() -> None:
    assert STEP.needs == {"keys"}
    assert LAST.needs == {"cls_attention@-2"}
    assert Recipe(STEP, LAST).needs == {"keys", "cls_attention@-2"}
    assert Step(Stage.IMAGE, Once(), SelectAssign(Strided(), Drop()), Identity()).needs == set()


def test_a_step_knows_whether_it_learns() -> None:
    class Learned(FeatureNorm):
        differentiable = True

    learned = Step(Stage.BLOCK, Skip(), SelectAssign(TopK(Learned()), Drop()), Identity())
    assert learned.learns
    assert not STEP.learns


def test_a_step_counts_with_its_matcher() -> None:
    assert STEP.counts(100, 4, 40) == (100, 70, 70, 40)
    with pytest.raises(BudgetError, match="25") as caught:
        STEP.counts(100, 4, 10)
    assert "keep=10" in str(caught.value)


# ----------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("steps", "options", "named"),
    [
        ((), {}, ["[]", "one or more"]),
        (("evoprune",), {}, ["'evoprune'", "Step(...)"]),
        ((STEP, STEP), {}, ["Stage.BLOCK, Stage.BLOCK", "later stage"]),
        ((LAST, STEP), {}, ["Stage.FEATURES, Stage.BLOCK", "image, embedded, block"]),
        ((STEP,), {"keep": 0}, ["keep=0", "int >= 1", "(0, 1]"]),
        ((STEP,), {"keep": -3}, ["keep=-3", "int >= 1"]),
        ((STEP,), {"keep": 0.0}, ["keep=0.0", "(0, 1]"]),
        ((STEP,), {"keep": 1.5}, ["keep=1.5", "(0, 1]"]),
        ((STEP,), {"keep": True}, ["keep=True", "int >= 1"]),
        ((STEP,), {"keep": "64"}, ["keep='64'", "int >= 1"]),
        ((STEP,), {"keep": float("nan")}, ["keep=nan", "(0, 1]"]),
        ((STEP,), {"keep": None}, ["keep=None", "count or a fraction"]),
        ((STEP,), {"proportional_attention": "yes"}, ["'yes'", "True", "False"]),
    ],
)
def test_bad_recipes(steps: tuple[Any, ...], options: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(BadArgumentError) as caught:
        Recipe(*steps, **options)
    assert all(part in str(caught.value) for part in named), str(caught.value)


def test_no_keep_is_needed_where_the_schedule_fixes_what_goes() -> None:
    fixed = Recipe(Step(Stage.BLOCK, PerBlock(8), STEP.matcher, STEP.merger), keep=None)
    assert fixed.keep is None
    assert fixed.wanted(100) == 100
    assert fixed.budget(100, 3).blocks == (92, 84, 76)


def test_recipes_are_frozen_and_compare_by_value() -> None:
    recipe = Recipe(STEP, keep=64)
    assert recipe == Recipe(STEP, keep=64)
    assert hash(recipe) == hash(Recipe(STEP, keep=64))
    assert recipe != Recipe(STEP, keep=65)
    assert recipe != Recipe(STEP, keep=64, proportional_attention=True)
    with pytest.raises(FrozenInstanceError, match="keep"):
        recipe.keep = 65  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(FrozenInstanceError, match="merger"):
        STEP.merger = Identity()  # pyright: ignore[reportAttributeAccessIssue]


def test_steps_are_found_by_stage() -> None:
    last = Step(Stage.LLM(16), Once(), SELECT, Identity())
    recipe = Recipe(STEP, last)
    assert recipe.step_at(Stage.BLOCK) is recipe.step_at(Stage.BLOCK(3)) is STEP
    assert recipe.step_at(Stage.LLM) is last
    assert recipe.step_at(Stage.IMAGE) is None


def variants() -> dict[str, Recipe]:
    """All registered recipes, and some with other options, so that other parts are shown."""
    found = {name: tokenzoo.build(name).recipe for name in tokenzoo.list_recipes()}
    options: dict[str, dict[str, Any]] = {
        "evoprune": {"keep": 64, "tau": 0.5, "curve": "exp", "merger": "mean"},
        "tome": {"r": [1, 2, 3]},
        "visionzip": {"dominant": 54, "keep": 1.0},
        "cdpruner": {"relevance": "clip"},
    }
    for name, chosen in options.items():
        found[f"{name}, {chosen}"] = tokenzoo.build(name, **chosen).recipe
    terms = FeatureNorm().normalized("rank") + 0.3 * CLSAttention(layer=-2).normalized("zscore")
    llm = Step(
        Stage.LLM(2), Once(0.5), SelectAssign(TopK(terms), Drop()), Identity(), "compact", "drop"
    )
    found["two steps"] = Recipe(STEP, llm, keep=3, proportional_attention=True)
    return found


@pytest.mark.parametrize(
    "recipe", [pytest.param(recipe, id=name) for name, recipe in variants().items()]
)
def test_the_repr_is_code_that_makes_an_equal_recipe(recipe: Recipe) -> None:
    # Two parts are called Mean, a schedule and a merger: whoever evaluates this has imported one.
    merger = any(isinstance(step.merger, mergers.Mean) for step in recipe.steps)
    again = eval(repr(recipe), {**NAMES, "Mean": mergers.Mean if merger else Mean})
    assert again == recipe
    assert repr(again) == repr(recipe)
    assert again.needs == recipe.needs


# ------------------------------------------------------------------------------------ budgets


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tokens": 0}, ["tokens=0", "int >= 1"]),
        ({"tokens": 2.5}, ["tokens=2.5", "int >= 1"]),
        ({"tokens": True}, ["tokens=True", "int >= 1"]),
        ({"depth": 0}, ["depth=0", "int >= 1"]),
        ({"depth": "12"}, ["depth='12'", "int >= 1"]),
        ({"prefix": -1}, ["prefix=-1", "int >= 0"]),
        ({"width": 0}, ["width=0", "int >= 1"]),
        ({"hidden": -4}, ["hidden=-4", "int >= 1"]),
    ],
)
def test_bad_budgets(options: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(BadArgumentError) as caught:
        Recipe(STEP).budget(**{"tokens": 196, "depth": 12, **options})
    assert all(part in str(caught.value) for part in named), str(caught.value)


def test_budgets_go_from_stage_to_stage() -> None:
    image = Step(Stage.IMAGE, Once(keep=2.0), SelectAssign(Strided(), Drop()), Identity())
    llm = Step(Stage.LLM(2), Once(keep=0.5), SELECT, Identity())
    budget = Recipe(image, STEP, llm, keep=32).budget(256, 4, prefix=1)
    assert (budget.tokens, budget.entering) == (256, 64)
    assert budget.blocks == (64, 48, 48, 32)
    assert (budget.features, budget.llm) == (32, 16)
    assert budget.hidden == 4 * budget.width
    several = [
        Step(Stage.LLM(k), Once(keep=f), SELECT, Identity()) for k, f in ((2, 2.0), (5, 0.5))
    ]
    assert Recipe(*several, keep=32).budget(256, 4).layers == ((2, 64), (5, 16))
    alone = Recipe(LAST, keep=9).budget(256, 4)
    assert alone.blocks == (256,) * 4
    assert (alone.features, alone.layers, alone.llm) == (9, (), None)


def test_a_recipe_of_an_image_no_larger_than_keep_leaves_it_whole() -> None:
    assert Recipe(STEP, keep=64).budget(16, 4).blocks == (16,) * 4
    assert Recipe(STEP, keep=64).wanted(16) == 16


def test_parts_by_other_people_are_parts() -> None:
    step = Step(Stage.BLOCK, Skip(), STEP.matcher, Blurs())
    assert "Blurs()" in repr(Recipe(step))
    assert isinstance(TokenMap.identity(1, 2).keep, torch.Tensor)
