"""Recipes: frozen, checked when they are made, and shown as code that makes them again."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

import tokenzoo
from tests.mutants import Blurs
from tokenzoo import Recipe, Stage, Step, matchers, mergers, schedules, scorers
from tokenzoo.matchers import Bipartite, Drop, SelectAssign, Strided, TopK
from tokenzoo.mergers import Identity, WeightedMean
from tokenzoo.schedules import Once, PerBlock, Skip
from tokenzoo.scorers import CLSAttention, FeatureNorm, Similarity

STEP = Step(Stage.BLOCK, Skip(), Bipartite(Similarity("keys")), WeightedMean())
SELECT = SelectAssign(TopK(CLSAttention(layer=-2)), Drop())
LAST = Step(Stage.FEATURES, Once(), SELECT, Identity())


def test_stages_are_shown_as_they_are_written() -> None:
    assert repr(Stage.LLM(16)) == "Stage.LLM(16)"
    assert Stage.LLM(16) == Stage("llm", 16) != Stage.LLM
    for name in Stage.NAMES:
        assert eval(repr(Stage(name))) == Stage(name) == getattr(Stage, name.upper())


def test_stages_are_in_the_order_of_the_data() -> None:
    order = [Stage.IMAGE, Stage.EMBEDDED, Stage.BLOCK, Stage.BLOCK(0), Stage.BLOCK(3)]
    order += [Stage.FEATURES, Stage.PROJECTED, Stage.LLM, Stage.LLM(2), Stage.LLM(16)]
    assert sorted(order, key=lambda stage: stage.order) == order


def test_a_step_knows_what_its_parts_need_and_whether_one_learns() -> None:
    class Learned(FeatureNorm):
        differentiable = True

    assert Recipe(STEP, LAST).needs == {"keys", "cls_attention@-2"}
    strided, learned = (SelectAssign(stay, Drop()) for stay in (Strided(), TopK(Learned())))
    assert Step(Stage.IMAGE, Once(), strided, Identity()).needs == set()
    assert Step(Stage.BLOCK, Skip(), learned, Identity()).learns
    assert not STEP.learns


def test_no_keep_is_needed_where_the_schedule_fixes_what_goes() -> None:
    fixed = Recipe(Step(Stage.BLOCK, PerBlock(8), STEP.matcher, STEP.merger), keep=None)
    assert fixed.wanted(100) == 100
    assert fixed.budget(100, 3).blocks == (92, 84, 76)


def test_recipes_are_frozen_and_compare_by_value() -> None:
    recipe = Recipe(STEP, keep=64)
    assert recipe == Recipe(STEP, keep=64)
    assert hash(recipe) == hash(Recipe(STEP, keep=64))
    assert recipe != Recipe(STEP, keep=65)
    assert recipe != Recipe(STEP, keep=64, proportional_attention=True)
    for value, name in ((recipe, "keep"), (STEP, "merger")):
        with pytest.raises(FrozenInstanceError, match=name):
            setattr(value, name, None)


def test_steps_are_found_by_stage() -> None:
    last = Step(Stage.LLM(16), Once(), SELECT, Identity())
    recipe = Recipe(STEP, last)
    assert recipe.step_at(Stage.BLOCK) is recipe.step_at(Stage.BLOCK(3)) is STEP
    assert recipe.step_at(Stage.LLM) is last
    assert recipe.step_at(Stage.IMAGE) is None


def test_the_repr_is_code_that_makes_an_equal_recipe() -> None:
    """Of several steps and of sums of scores; of one step the property `repr_is_code` says it."""
    terms = FeatureNorm().normalized("rank") + 0.3 * CLSAttention(layer=-2).normalized("zscore")
    select = SelectAssign(TopK(terms), Drop())
    llm = Step(Stage.LLM(2), Once(0.5), select, Identity(), "compact", "drop")
    recipe = Recipe(STEP, llm, keep=3, proportional_attention=True)
    names: dict[str, Any] = {}
    for module in (tokenzoo, matchers, mergers, schedules, scorers, tokenzoo.parts):
        names |= vars(module)
    again = eval(repr(recipe), names)
    assert again == recipe
    assert repr(again) == repr(recipe)
    assert again.needs == recipe.needs
    other = Step(Stage.BLOCK, Skip(), STEP.matcher, Blurs())  # of other people
    assert "Blurs()" in repr(Recipe(other))


def test_budgets_go_from_stage_to_stage() -> None:
    image = Step(Stage.IMAGE, Once(keep=2.0), SelectAssign(Strided(), Drop()), Identity())
    llm = Step(Stage.LLM(2), Once(keep=0.5), SELECT, Identity())
    budget = Recipe(image, STEP, llm, keep=32).budget(256, 4, prefix=1)
    assert (budget.tokens, budget.entering) == (256, 64)
    assert budget.blocks == (64, 48, 48, 32)
    assert (budget.features, budget.llm) == (32, 16)
    assert budget.hidden == 4 * budget.width
    later = Step(Stage.LLM(5), Once(keep=0.25), SELECT, Identity())
    assert Recipe(llm, later, keep=32).budget(256, 4).layers == ((2, 16), (5, 8))
    alone = Recipe(LAST, keep=9).budget(256, 4)
    assert alone.blocks == (256,) * 4
    assert (alone.features, alone.layers, alone.llm) == (9, (), None)
