"""The public functions: build, list, describe, save and load, and what each says when it cannot."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenzoo
from tests.mutants import LikesNaN
from tokenzoo import Recipe, Stage, Step, plugins
from tokenzoo.budget import TokenBudget
from tokenzoo.errors import BadArgumentError, BudgetError, TokenzooError, UnknownNameError
from tokenzoo.matchers import (
    REST,
    Drop,
    Every,
    Nearest,
    Protect,
    SelectAssign,
    Strided,
    Then,
    TopK,
)
from tokenzoo.matchers import Bipartite as BipartiteMatcher
from tokenzoo.mergers import Identity, TargetPlusMean, WeightedMean
from tokenzoo.schedules import Decreasing, Explicit, Mean, Once, Skip
from tokenzoo.scorers import CLSAttention, Diversity, FeatureNorm, Random, Similarity

RECIPES = tokenzoo.list_recipes()


# ------------------------------------------------------------------------------------- build


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_defaults_a_keep_and_a_plan(name: str) -> None:
    zoo = tokenzoo.build(name)
    assert zoo.name == name
    assert zoo.recipe.keep == {"fastv": 0.5, "pyramiddrop": 0.125, "sparsevlm": 0.2}.get(name, 0.25)
    plan = zoo.plan(tokens=256, depth=12, prefix=1)
    assert _left(plan) == zoo.recipe.wanted(256)
    assert len(plan.blocks) == 12
    smaller = tokenzoo.build(name, keep=100)
    assert smaller.recipe.keep == 100
    assert _left(smaller.plan(tokens=256, depth=12)) == 100


def _left(plan: TokenBudget) -> int:
    """The number of tokens after the last step."""
    return plan.visual if plan.llm is None else plan.llm


@pytest.mark.parametrize("name", RECIPES)
def test_every_option_is_a_keyword_with_a_default(name: str) -> None:
    for option in inspect.signature(plugins.find("recipes", name)).parameters.values():
        assert option.kind is inspect.Parameter.KEYWORD_ONLY
        assert option.default is not inspect.Parameter.empty


def test_a_recipe_made_by_hand() -> None:
    recipe = Recipe(
        Step(Stage.FEATURES, Once(), SelectAssign(TopK(FeatureNorm()), Drop()), Identity()),
        keep=0.5,
        proportional_attention=True,
    )
    assert tokenzoo.build(recipe).recipe is recipe
    other = tokenzoo.build(recipe, keep=3).recipe
    assert other == Recipe(*recipe.steps, keep=3, proportional_attention=True)


def test_a_zoo_is_shown_as_the_call_that_makes_it() -> None:
    zoo = tokenzoo.build("evoprune", ctr=0.5, keep=64)
    assert repr(zoo) == "tokenzoo.build('evoprune', ctr=0.5, keep=64)"
    assert eval(repr(zoo)) == zoo
    recipe = zoo.recipe
    assert repr(tokenzoo.build(recipe)) == f"tokenzoo.build({recipe!r})"


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("evoprun", {}, ["no recipe 'evoprun'", "did you mean 'evoprune'", "visionzip"]),
        ("zzz", {}, ["no recipe 'zzz'", "there are", *RECIPES]),
        ("evoprune", {"crt": 0.5}, ["no option of evoprune 'crt'", "'ctr'", "keep", "lam"]),
        (
            "divprune",
            {"zzz": 1},
            ["no option of divprune 'zzz'", "there are flops, keep, match_reference"],
        ),
        (tokenzoo.build("tome").recipe, {"r": 3}, ["no option 'r'", "there are flops, keep"]),
    ],
)
def test_unknown_names_are_told_the_nearest(
    name: Any, options: dict[str, Any], named: list[str]
) -> None:
    with pytest.raises(UnknownNameError) as caught:
        tokenzoo.build(name, **options)
    assert isinstance(caught.value, TokenzooError | KeyError)
    assert all(part in str(caught.value) for part in named), str(caught.value)
    assert not str(caught.value).startswith(("'", '"'))  # a sentence, and not KeyError's repr of it


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        (3, {}, ["build(3)", "name of a recipe"]),
        (None, {}, ["build(None)", "name of a recipe"]),
        ("evoprune", {"keep": 0}, ["keep=0", "int >= 1"]),
        ("evoprune", {"ctr": 1.5}, ["ctr=1.5", "[0, 1]"]),
        ("evoprune", {"curve": "tanh"}, ["curve='tanh'", "'sigmoid'"]),
        ("evoprune", {"merger": "median"}, ["merger='median'", "'weighted_mean'", "'mean'"]),
        ("evoprune", {"merger": []}, ["merger=[]", "'weighted_mean'", "'mean'"]),
        ("evoprune", {"schedule": "mean"}, ["schedule='mean'", "Schedule"]),
        ("evoprune", {"k": None}, ["k=None", "int >= 1"]),
        ("evoprune", {"start": -1}, ["start=-1", "int >= 0"]),
        ("evoprune", {"every": 0}, ["every=0", "int >= 1"]),
        ("tome", {"r": -1}, ["r=-1"]),
        ("tome", {"r": 2.5}, ["r=2.5"]),
        ("tome", {"r": [1, -2]}, ["removals=-2", "int >= 0"]),
        ("visionzip", {"dominant": -0.5}, ["dominant=-0.5", "[0, 1]"]),
        ("uniform", {"at": 1.5}, ["at=1.5", "[0, 1]"]),
        ("random", {"seed": -1}, ["seed=-1", "2**31 - 1"]),
    ],
)
def test_options_that_cannot_work(name: Any, options: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(BadArgumentError) as caught:
        tokenzoo.build(name, **options)
    assert all(part in str(caught.value) for part in named), str(caught.value)


def test_plans_that_cannot_be_reached_name_the_fewest() -> None:
    with pytest.raises(BudgetError) as caught:
        tokenzoo.build("evoprune", keep=1).plan(tokens=256, depth=4)
    assert "keep=1" in str(caught.value)
    assert "64" in str(caught.value)  # two sites that can halve


# -------------------------------------------------------------------------------------- lists


LISTS = {
    "recipes": tokenzoo.list_recipes,
    "scorers": tokenzoo.list_scorers,
    "matchers": tokenzoo.list_matchers,
    "mergers": tokenzoo.list_mergers,
    "schedules": tokenzoo.list_schedules,
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_are_sorted_and_take_patterns(kind: str) -> None:
    names = LISTS[kind]()
    assert names == sorted(set(names))
    assert names == list(plugins.collect(kind)) or set(names) == set(plugins.collect(kind))  # pyright: ignore[reportArgumentType]
    assert LISTS[kind]("nothing like this") == []
    for name in names:
        assert LISTS[kind](name) == [name]
        assert name in LISTS[kind](f"{name[:2]}*")


def test_list_patterns() -> None:
    assert tokenzoo.list_recipes("*prune*") == [
        *("cdpruner", "divprune", "evoprune", "gprune", "vispruner")
    ]
    assert tokenzoo.list_scorers("*_attention") == [
        *("cls_attention", "last_token_attention", "received_attention")
    ]
    assert tokenzoo.list_matchers("max_*") == ["max_min"]
    assert tokenzoo.list_mergers("*mean") == ["mean", "target_plus_mean", "weighted_mean"]
    assert tokenzoo.list_schedules("[fl]*st") == ["first", "last"]


def test_adapters_are_listed_by_the_name_of_their_plugin() -> None:
    assert {"open_clip", "timm", "torchvision"} <= set(tokenzoo.list_adapters())


# ----------------------------------------------------------------------------------- describe

ALL_NAMES = sorted({name for kind in plugins.KINDS for name in plugins.collect(kind)})


@pytest.mark.parametrize("name", ALL_NAMES)
def test_every_name_is_described_with_every_option_and_default(name: str) -> None:
    text = tokenzoo.describe(name)
    kinds = [kind for kind in plugins.KINDS if name in plugins.collect(kind)]
    for kind in kinds:  # "mean" is a merger and a schedule, "random" a scorer and a recipe
        factory = plugins.find(kind, name)
        assert f"{name} ({kind[:-1]})" in text
        summary = inspect.cleandoc(factory.__doc__ or "").splitlines()[0]
        assert summary
        assert summary in text
        for option in inspect.signature(factory).parameters.values():
            default = "(required)" if option.default is option.empty else repr(option.default)
            assert f"  {option.name} = {default}" in text


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_described_with_parts_needs_and_promises(name: str) -> None:
    text = tokenzoo.describe(name)
    for step in tokenzoo.build(name).recipe.steps:
        for part in (step.stage, step.schedule, step.matcher, step.merger):
            assert repr(part) in text
        for need in step.needs:
            assert need in text
        for promise in step.merger.conserves:
            assert promise in text
        assert f"100 tokens can become {step.matcher.min_tokens(100)} at one site" in text


def test_what_must_be_materialised_is_said() -> None:
    assert "one matrix product" in tokenzoo.describe("evoprune")
    assert "tokens only, no pairs" in tokenzoo.describe("random")


def test_unknown_names_are_not_described() -> None:
    with pytest.raises(UnknownNameError) as caught:
        tokenzoo.describe("diversty")
    assert "no recipe or part 'diversty'" in str(caught.value)
    assert "did you mean 'diversity'" in str(caught.value)


# ------------------------------------------------------------------------------- save and load

OPTIONS: dict[str, dict[str, Any]] = {
    "evoprune": {"ctr": 0.5, "keep": 64, "lam": 0.0, "schedule": Decreasing()},
    "tome": {"r": [3, 2, 1], "proportional_attention": False},
    "visionzip": {"dominant": 54, "keep": 1.0},
    "cdpruner": {"relevance": "clip", "negated": False},
    "random": {"seed": 7},
    "uniform": {"at": 0.5},
    "pool": {"at": 3},
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_by_name_comes_back(name: str, tmp_path: Path) -> None:
    for options in ({}, OPTIONS.get(name, {"keep": 3})):
        zoo = tokenzoo.build(name, **options)
        zoo.save(tmp_path / "recipe.json")
        again = tokenzoo.load(tmp_path / "recipe.json")
        assert again.recipe == zoo.recipe
        assert again.name == name
        assert set(again.options) == set(options)
        content = json.loads((tmp_path / "recipe.json").read_text())
        assert content["recipe"] == name
        assert set(content) == {"tokenzoo", "recipe", "options"}


BY_HAND = {
    **{f"{name} by parts": tokenzoo.build(name).recipe for name in RECIPES},
    "two steps": Recipe(
        Step(
            Stage.BLOCK,
            Explicit((1, 2)),
            BipartiteMatcher(Similarity("x", "exp", 2.5) * Diversity("x", tau=1.5).discount(0.1)),
            WeightedMean(),
        ),
        Step(
            Stage.LLM(16),
            Once(-1, keep=0.5),
            SelectAssign(
                Then(
                    (0.5, TopK(CLSAttention(layer=-2), rest="score")),
                    (3, TopK(FeatureNorm().normalized("rank") + 0.5 * Random(3).normalized())),
                    (REST, Strided("floor")),
                ),
                Nearest(Similarity("x"), group=-1),
                order="groups",
            ),
            TargetPlusMean(),
            positions="compact",
            prefix="drop",
        ),
        keep=3,
        proportional_attention=True,
    ),
    "every": Recipe(
        Step(
            Stage.BLOCK(3),
            Skip(0, 3),
            BipartiteMatcher(
                Similarity("x"), split=Every(4), protect=Protect(FeatureNorm(), 0.1, sticky=True)
            ),
            WeightedMean(),
        )
    ),
    "fixed": Recipe(
        Step(Stage.BLOCK, Explicit((4, 4)), BipartiteMatcher(Similarity("x")), WeightedMean()),
        keep=None,
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_recipe_by_parts_comes_back(name: str, tmp_path: Path) -> None:
    zoo = tokenzoo.build(BY_HAND[name])
    zoo.save(tmp_path / "recipe.json")
    again = tokenzoo.load(str(tmp_path / "recipe.json"))
    assert again.recipe == BY_HAND[name]
    assert type(again.recipe.keep) is type(BY_HAND[name].keep)  # 1 is a count, 1.0 a fraction
    assert again.name is None
    x = torch.randn(1, 12, 4, generator=torch.Generator().manual_seed(0))
    if len(again.recipe.steps) == 1 and again.recipe.needs <= {"x"}:
        again = tokenzoo.build(again.recipe, keep=6)
        assert torch.equal(again.reduce(x).x, tokenzoo.build(BY_HAND[name], keep=6).reduce(x).x)


def strings(content: Any) -> set[str]:
    if isinstance(content, dict):
        return set(content) | set().union(*map(strings, content.values()))
    if isinstance(content, list):
        return set().union(*map(strings, content))
    return {content} if isinstance(content, str) else set()


@pytest.mark.parametrize("name", BY_HAND)
def test_a_saved_file_is_names_and_numbers(name: str, tmp_path: Path) -> None:
    """No code, no module, no class: nothing that could be imported or evaluated."""
    tokenzoo.build(BY_HAND[name]).save(tmp_path / "recipe.json")
    text = (tmp_path / "recipe.json").read_text()
    assert all(word.replace("_", "").isalnum() for word in strings(json.loads(text)))
    assert "tokenzoo." not in text
    assert "lambda" not in text


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(Step(Stage.FEATURES, Once(), SelectAssign(TopK(LikesNaN()), Drop()), Identity())),
        tokenzoo.build("evoprune", schedule=type("Mine", (Mean,), {})()).recipe,
    ],
    ids=["scorer", "schedule"],
)
def test_what_is_registered_nowhere_is_not_saved(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(BadArgumentError) as caught:
        tokenzoo.build(recipe).save(tmp_path / "recipe.json")
    assert "not registered under a name" in str(caught.value)
    assert "code is never saved" in str(caught.value)
    assert not (tmp_path / "recipe.json").exists()


def test_what_is_no_number_is_not_saved(tmp_path: Path) -> None:
    zoo = tokenzoo.build("tome", r=(1, 2))
    with pytest.raises(BadArgumentError) as caught:
        replace(zoo, options={"r": (1, {1})}).save(tmp_path / "recipe.json")
    assert "{1} cannot be saved" in str(caught.value)
    assert "names, numbers and registered parts" in str(caught.value)


STEP = {
    "stage": {"stage": "features", "layer": None},
    "schedule": {"part": ["schedules", "once"], "options": {}},
    "matcher": {
        "part": ["matchers", "select_assign"],
        "options": {
            "stay": {"part": ["matchers", "strided"], "options": {}},
            "join": {"part": ["matchers", "drop"], "options": {}},
        },
    },
    "merger": {"part": ["mergers", "identity"], "options": {}},
}


def saved(**changes: Any) -> str:
    step = {**STEP, **changes.pop("step", {})}
    return json.dumps(
        {
            "tokenzoo": 1,
            "steps": [{"step": step}],
            "keep": 4,
            "proportional_attention": False,
            **changes,
        }
    )


def part(kind: str, name: str, *more: str, **options: Any) -> dict[str, Any]:
    return {"part": [kind, name, *more], "options": options}


def test_a_file_by_hand_is_read(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(saved())
    step = Step(Stage.FEATURES, Once(), SelectAssign(Strided(), Drop()), Identity())
    assert tokenzoo.load(tmp_path / "recipe.json").recipe == Recipe(step, keep=4)


@pytest.mark.parametrize(
    ("text", "kind", "named"),
    [
        ("not json", BadArgumentError, ["not a saved recipe"]),
        ("", BadArgumentError, ["not a saved recipe"]),
        ("[1, 2]", BadArgumentError, ["not a saved recipe"]),
        ("{}", BadArgumentError, ["format None", "reads 1"]),
        ('{"tokenzoo": 2}', BadArgumentError, ["format 2", "reads 1", "upgrade"]),
        ('{"tokenzoo": 1}', BadArgumentError, ["not a saved recipe", "steps"]),
        ('{"tokenzoo": 1, "recipe": "tome"}', BadArgumentError, ["not a saved recipe", "options"]),
        (
            '{"tokenzoo": 1, "recipe": "tom", "options": {}}',
            UnknownNameError,
            ["no recipe 'tom'", "'tome'"],
        ),
        (
            '{"tokenzoo": 1, "recipe": "tome", "options": {"q": 1}}',
            UnknownNameError,
            ["no option of tome 'q'", "inflection"],
        ),
        (
            '{"tokenzoo": 1, "recipe": "tome", "options": [1]}',
            BadArgumentError,
            ["not a saved recipe"],
        ),
        (saved(keep=0), BadArgumentError, ["keep=0", "int >= 1"]),
        (saved(steps=[]), BadArgumentError, ["one or more"]),
        (saved(steps=[3]), BadArgumentError, ["Recipe(3)", "Step(...)"]),
        (
            saved(step={"merger": part("mergers", "identty")}),
            UnknownNameError,
            ["'identty'", "'identity'"],
        ),
        (
            saved(step={"merger": part("mergers", "identity", "now")}),
            BadArgumentError,
            ["not a saved recipe"],
        ),
        (
            saved(step={"merger": part("merger", "keep")}),
            BadArgumentError,
            ["not a saved recipe", "merger"],
        ),
        (
            saved(step={"merger": part("combined", "Identity")}),
            BadArgumentError,
            ["not a saved recipe", "Identity"],
        ),
        (
            saved(step={"merger": part("mergers", "identity", share=1)}),
            BadArgumentError,
            ["not a saved recipe", "share"],
        ),
        (saved(step={"merger": part("matchers", "drop")}), BadArgumentError, ["merger=Drop()"]),
        (saved(step={"merger": "keep"}), BadArgumentError, ["merger='keep'", "Merger"]),
        (saved(step={"twice": 1}), BadArgumentError, ["not a saved recipe", "twice"]),
        (
            saved(step={"schedule": part("schedules", "once", at=1.5)}),
            BadArgumentError,
            ["at=1.5"],
        ),
    ],
)
def test_files_that_are_not_ours(
    text: str, kind: type[TokenzooError], named: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(kind) as caught:
        tokenzoo.load(path)
    assert all(part in str(caught.value) for part in named), str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadArgumentError) as caught:
        tokenzoo.load(tmp_path / "nothing.json")
    assert "nothing.json" in str(caught.value)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadArgumentError, match=r"binary\.json is not a saved recipe"):
        tokenzoo.load(tmp_path / "binary.json")


def test_all_is_what_can_be_imported() -> None:
    assert len(set(tokenzoo.__all__)) == len(tokenzoo.__all__)
    for name in tokenzoo.__all__:
        assert getattr(tokenzoo, name) is not None
    public = {
        name
        for name in vars(tokenzoo)
        if name[0] != "_" and not inspect.ismodule(vars(tokenzoo)[name])
    }
    assert public == set(tokenzoo.__all__)


def test_tome_takes_keep_or_r_and_not_both() -> None:
    with pytest.raises(BadArgumentError, match=r"keep=64 and r=8.*one of the two"):
        tokenzoo.build("tome", keep=64, r=8)
    assert tokenzoo.build("tome").recipe.keep == 0.25
    assert tokenzoo.build("tome", r=8).recipe.keep is None
