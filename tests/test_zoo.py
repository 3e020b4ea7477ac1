"""The public functions: build, list, describe, save and load."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tokenzoo
from tests.mutants import LikesNaN
from tests.refusals import refused
from tokenzoo import Recipe, Stage, Step, plugins
from tokenzoo.errors import BadArgumentError, TokenzooError, UnknownNameError
from tokenzoo.matchers import (
    REST,
    Bipartite,
    Drop,
    Every,
    Nearest,
    Protect,
    SelectAssign,
    Strided,
    Then,
    TopK,
)
from tokenzoo.mergers import Identity, TargetPlusMean, WeightedMean
from tokenzoo.schedules import Decreasing, Explicit, Mean, Once, Skip
from tokenzoo.scorers import CLSAttention, Diversity, FeatureNorm, Random, Similarity
from tokenzoo.serialization import LARGEST

RECIPES = tokenzoo.list_recipes()


# ------------------------------------------------------------------------------------- build


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_defaults_a_keep_and_a_plan(name: str) -> None:
    zoo = tokenzoo.build(name)
    assert zoo.name == name
    assert zoo.recipe.keep == {"fastv": 0.5, "pyramiddrop": 0.125, "sparsevlm": 0.2}.get(name, 0.25)
    smaller = tokenzoo.build(name, keep=100)
    assert smaller.recipe.keep == 100
    for made, wanted in ((zoo, zoo.recipe.wanted(256)), (smaller, 100)):
        plan = made.plan(tokens=256, depth=12, prefix=1)
        assert len(plan.blocks) == 12
        if zoo.recipe.all_back:
            assert (plan.blocks[-1], plan.visual) == (wanted, 256)
        else:
            assert (plan.visual if plan.llm is None else plan.llm) == wanted
    for option in inspect.signature(plugins.find("recipes", name)).parameters.values():
        assert option.kind is inspect.Parameter.KEYWORD_ONLY
        assert option.default is not inspect.Parameter.empty


def test_tome_removes_by_r_without_a_keep() -> None:
    assert tokenzoo.build("tome", r=8).recipe.keep is None


def test_a_recipe_made_by_hand() -> None:
    select = SelectAssign(TopK(FeatureNorm()), Drop())
    step = Step(Stage.FEATURES, Once(), select, Identity())
    recipe = Recipe(step, keep=0.5, proportional_attention=True)
    assert tokenzoo.build(recipe).recipe is recipe
    other = tokenzoo.build(recipe, keep=3).recipe
    assert other == Recipe(step, keep=3, proportional_attention=True)
    assert repr(tokenzoo.build(recipe)) == f"tokenzoo.build({recipe!r})"


def test_a_zoo_is_shown_as_the_call_that_makes_it() -> None:
    zoo = tokenzoo.build("evoprune", ctr=0.5, keep=64)
    assert repr(zoo) == "tokenzoo.build('evoprune', ctr=0.5, keep=64)"
    assert eval(repr(zoo)) == zoo


# -------------------------------------------------------------------------- lists, descriptions


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_lists_are_sorted_and_take_patterns(kind: plugins.Kind) -> None:
    listed = getattr(tokenzoo, f"list_{kind}")
    assert listed() == sorted(plugins.collect(kind))
    assert listed("nothing like this") == []
    for name in listed():
        assert listed(name) == [name]
        assert name in listed(f"{name[:2]}*")


def test_adapters_are_listed_by_the_name_of_their_plugin() -> None:
    assert {"open_clip", "timm", "torchvision"} <= set(tokenzoo.list_adapters())


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_name_is_described_with_every_option_and_default(kind: plugins.Kind) -> None:
    for name, factory in plugins.collect(kind).items():
        text = tokenzoo.describe(name)  # "mean" is a merger and a schedule
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
        parts = map(repr, (step.stage, step.schedule, step.matcher, step.merger))
        for said in (*parts, *step.needs, *step.merger.conserves):
            assert said in text
        assert f"100 tokens can become {step.matcher.min_tokens(100)} at one site" in text


def test_what_must_be_materialised_is_said() -> None:
    assert "one matrix product" in tokenzoo.describe("evoprune")
    assert "tokens only, no pairs" in tokenzoo.describe("random")


# ------------------------------------------------------------------------------- save and load

OPTIONS: dict[str, dict[str, Any]] = {
    "evoprune": {"ctr": 0.5, "keep": 64, "lam": 0.0, "schedule": Decreasing()},
    "tome": {"r": [3, 2, 1], "proportional_attention": False},
    "visionzip": {"dominant": 54, "keep": 1.0},
    "cdpruner": {"relevance": "clip", "negated": False},
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_by_name_comes_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    for options in ({}, OPTIONS.get(name, {"keep": 3})):
        zoo = tokenzoo.build(name, **options)
        zoo.save(path)
        again = tokenzoo.load(path)
        assert (again.recipe, again.name) == (zoo.recipe, name)
        assert type(again.recipe.keep) is type(zoo.recipe.keep)  # 1 is a count, 1.0 a fraction
        assert set(again.options) == set(options)
        content = json.loads(path.read_text())
        assert content["recipe"] == name
        assert set(content) == {"tokenzoo", "recipe", "options"}


PAIRS = Bipartite(Similarity("x", "exp", 2.5) * Diversity("x", tau=1.5).discount(0.1))
CHOICE = Then(
    (0.5, TopK(CLSAttention(layer=-2), rest="score")),
    (3, TopK(FeatureNorm().normalized("rank") + 0.5 * Random(3).normalized())),
    (REST, Strided("floor")),
)
HELD = Bipartite(Similarity("x"), split=Every(4), protect=Protect(FeatureNorm(), 0.1, sticky=True))
BY_HAND = {
    **{f"{name} by parts": tokenzoo.build(name).recipe for name in RECIPES},
    "two steps": Recipe(
        Step(Stage.BLOCK, Explicit((1, 2)), PAIRS, WeightedMean()),
        Step(
            Stage.LLM(16),
            Once(-1, keep=0.5),
            SelectAssign(CHOICE, Nearest(Similarity("x"), group=-1), order="groups"),
            TargetPlusMean(),
            positions="compact",
            prefix="drop",
        ),
        keep=3,
        proportional_attention=True,
    ),
    "every": Recipe(Step(Stage.BLOCK(3), Skip(0, 3), HELD, WeightedMean()), keep=1.0),
    "fixed": Recipe(Step(Stage.BLOCK, Explicit((4, 4)), PAIRS, WeightedMean()), keep=None),
}


def strings(content: Any) -> set[str]:
    if isinstance(content, dict):
        return set(content) | set().union(*map(strings, content.values()))
    if isinstance(content, list):
        return set().union(*map(strings, content))
    return {content} if isinstance(content, str) else set()


@pytest.mark.parametrize("name", BY_HAND)
def test_a_recipe_by_parts_comes_back_from_names_and_numbers(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    tokenzoo.build(BY_HAND[name]).save(path)
    again = tokenzoo.load(str(path))
    assert (again.recipe, again.name) == (BY_HAND[name], None)
    assert type(again.recipe.keep) is type(BY_HAND[name].keep)
    # No code, no module, no class: nothing that could be imported or evaluated.
    words = strings(json.loads(path.read_text()))
    assert all(word.replace("_", "").isalnum() and word != "lambda" for word in words)


UNNAMED = Step(Stage.BLOCK, Once(), SelectAssign(TopK(LikesNaN()), Drop()), Identity())


@pytest.mark.parametrize(
    ("method", "word"),
    [
        (tokenzoo.build(Recipe(UNNAMED)), "not registered"),
        (tokenzoo.build("evoprune", schedule=type("Mine", (Mean,), {})()), "not registered"),
        (replace(tokenzoo.build("tome", r=(1, 2)), options={"r": (1, {1})}), "{1}"),
    ],
)
def test_what_has_no_name_is_not_saved(method: tokenzoo.Method, word: str, tmp_path: Path) -> None:
    refused(lambda: method.save(tmp_path / "recipe.json"), word)
    assert not (tmp_path / "recipe.json").exists()


def test_what_cannot_be_written_or_read_is_said(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "a.json"):
        refused(lambda path=path: tokenzoo.build("tome").save(path), path.name)
    refused(lambda: tokenzoo.load(tmp_path / "none.json"), "none.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    refused(lambda: tokenzoo.load(tmp_path / "a.json"), "a.json is not a saved recipe")
    with (tmp_path / "a.json").open("wb") as file:
        file.write(b'{"tokenzoo": 1, "recipe": "')
        file.truncate(10**9)  # of which nothing is stored
    refused(lambda: tokenzoo.load(tmp_path / "a.json"), f"more than {LARGEST} bytes")


def part(kind: str, name: str, *more: str, **options: Any) -> dict[str, Any]:
    return {"part": [kind, name, *more], "options": options}


STEP = {
    "stage": {"stage": "features", "layer": None},
    "schedule": part("schedules", "once"),
    "matcher": part(
        *("matchers", "select_assign"),
        stay=part("matchers", "strided"),
        join=part("matchers", "drop"),
    ),
    "merger": part("mergers", "identity"),
}


def by_name(name: Any, options: Any) -> str:
    return json.dumps({"tokenzoo": 1, "recipe": name, "options": options})


def by_parts(**changes: Any) -> str:
    """A file of one step, with other entries, of the file or of the step."""
    step = STEP | {key: value for key, value in changes.items() if key in (*STEP, "twice")}
    content = {"tokenzoo": 1, "steps": [{"step": step}], "keep": 4, "proportional_attention": False}
    return json.dumps(content | {key: value for key, value in changes.items() if key not in step})


def nested(depth: int) -> str:
    scorer = part("scorers", "feature_norm")
    for _ in range(depth):
        scorer = part("combined", "Normalized", scorer=scorer)
    return by_parts(matcher=scorer)


def test_a_file_by_hand_is_read(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(by_parts())
    step = Step(Stage.FEATURES, Once(), SelectAssign(Strided(), Drop()), Identity())
    assert tokenzoo.load(tmp_path / "recipe.json").recipe == Recipe(step, keep=4)


LONG = "x" * 900_000
NOT_OURS = "not a saved recipe"
# Files, and what the error says of each.
FILES: dict[type[TokenzooError], list[tuple[str, ...]]] = {
    BadArgumentError: [
        *((text, NOT_OURS) for text in ("not json", "", '{"tokenzoo": 1, "reci', "[1, 2]")),
        ("{}", "format None"),
        *((f'{{"tokenzoo": {n}}}', f"format {n.title()}") for n in ("2", "99", "true", "1.0")),
        (json.dumps({"tokenzoo": LONG}), "format"),
        ('{"tokenzoo": 1}', NOT_OURS, "steps"),
        ('{"tokenzoo": 1, "recipe": "tome"}', NOT_OURS, "options"),
        ('{"tokenzoo": ' + "9" * 5000 + "}", NOT_OURS),
        # nested without end
        ("[" * 100000, NOT_OURS),
        ('{"tokenzoo": 1, "steps": ' + "[" * 800 + "]" * 800 + "}", "nested too deep"),
        (nested(300), "nested too deep"),
        (by_name("tome", {"r": 1}).replace("1}}", "[" * 300 + "]" * 300 + "}}"), "nested too deep"),
        # entries of the file
        (json.dumps({"tokenzoo": 1, LONG: 1}), "is not one of"),
        (by_name("tome", {})[:-1] + ', "keep": 4}', "'keep' is not one of"),
        (by_parts(code="import os"), "'code'"),
        (by_parts(flops=0.5), "flops=0.5"),
        (by_parts(keep=0), "keep=0"),
        (by_parts(steps=[]), "one or more"),
        (by_parts(steps=[3]), "Recipe(3)"),
        (by_parts(steps=["import os"]), "import os"),
        (by_parts(steps=3), NOT_OURS),
        (by_name(3, {}), "build(3)"),
        (by_name("tome", [1]), NOT_OURS),
        (by_name("tome", {"recipe": "os.system"}), "'recipe' is not an option"),
        (by_name("tome", {"r": [LONG]}), "='xxx"),
        (by_name("tome", {"r": {"part": [[1], []], "options": 1}}), NOT_OURS),
        # parts
        (by_parts(merger=part("mergers", "identity", "now")), NOT_OURS),
        (by_parts(merger=part("modules", "os")), NOT_OURS, "modules"),
        (by_parts(merger=part("adapter", "timm")), "'adapter'"),
        (by_parts(merger=part("combined", "Identity")), NOT_OURS, "Identity"),
        (by_parts(merger=part("mergers", "identity", code="import os")), NOT_OURS, "code"),
        (by_parts(merger=part("matchers", "drop")), "merger=Drop()"),
        (by_parts(matcher=part("scorers", "random")), "matcher=Random"),
        (by_parts(merger="keep"), "merger='keep'"),
        (by_parts(merger=[]), "merger=()"),
        (by_parts(schedule=0), "schedule=0"),
        (by_parts(twice=1), NOT_OURS, "twice"),
        (by_parts(schedule=part("schedules", "once", at=1.5)), "at=1.5"),
        (by_parts(matcher=part("matchers", "bipartite", pairs=None)), "pairs=None"),
        (by_parts(schedule=part("schedules", "skip", every=2**63)), "every=9223372036854775808"),
    ],
    UnknownNameError: [
        (by_name("tom", {}), "'tom'", "'tome'"),
        (by_name(LONG, {}), "no recipe"),
        (by_name("tome", {"q": 1}), "'q'", "inflection"),
        (by_name("tome", {LONG: 1}), "no option of tome"),
        (by_parts(merger=part("mergers", "identty")), "'identty'", "'identity'"),
        (by_parts(matcher=part("matchers", "os.system", command="true")), "'os.system'"),
        (by_parts(matcher=part("matchers", "__import__", module="os")), "'__import__'"),
    ],
}


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [(kind, text, words) for kind, rows in FILES.items() for text, *words in rows],
    ids=lambda value: f"{value!s:.40}",
)
def test_files_that_are_not_ours(
    kind: type[TokenzooError], text: str, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "recipe.json").write_text(text)
    refused(lambda: tokenzoo.load(tmp_path / "recipe.json"), *words, kind=kind)


def test_all_is_what_can_be_imported() -> None:
    assert len(set(tokenzoo.__all__)) == len(tokenzoo.__all__)
    found = {name: value for name, value in vars(tokenzoo).items() if name[0] != "_"}
    public = {name for name, value in found.items() if not inspect.ismodule(value)}
    lazy = {name for name in tokenzoo.__all__ if getattr(tokenzoo, name) is not None}
    assert public == lazy == set(tokenzoo.__all__)
