"""`tokenzoo list` with options: which recipes fit a stage, an evidence, a model."""

from __future__ import annotations

import pytest
import timm

import tokenzoo
from tests.cli.test_commands import call
from tokenzoo import plugins
from tokenzoo.cli.list_filters import wanted
from tokenzoo.errors import AttachError, MissingEvidenceError


def listed(*options):
    result = call("list", *options)
    assert result.exit_code == 0, result.output
    return {line.split()[0] for line in result.output.splitlines()[1:] if line[:1].strip()}


@pytest.fixture
def needy():
    """A plugin whose recipe cannot be made without an option."""

    class Plugin:
        @staticmethod
        @tokenzoo.hookimpl
        def tokenzoo_recipes():
            def needy(*, keep):
                """Identity."""

            return {"needy": needy}

    with plugins.registered(Plugin()):
        yield


def needs(name):
    return {part for need in tokenzoo.build(name).recipe.needs for part in need.split("@")}


@pytest.mark.parametrize("stage", ["image", "block", "features", "projected", "llm"])
def test_a_stage_is_where_a_step_works(stage) -> None:
    recipes = {name: tokenzoo.build(name).recipe for name in tokenzoo.list_recipes()}
    expected = {n for n, r in recipes.items() if any(s.stage.name == stage for s in r.steps)}
    assert expected
    assert listed("--stage", stage) == expected


def test_evidence_that_is_not_needed() -> None:
    every = set(tokenzoo.list_recipes())
    assert listed("--needs-no", "cls") == {n for n in every if "cls_attention" not in needs(n)}
    assert listed("--needs-no", "cls_attention") == listed("--needs-no", "cls")
    both = {n for n in every if needs(n).isdisjoint({"cls_attention", "grid"})}
    assert listed("--needs-no", "cls,grid") == both
    assert listed("--needs-no", "cls", "--needs-no", "grid") == both
    assert "fastervlm" not in listed("--needs-no", "cls")
    no_text = listed("--needs-no", "text")
    assert "cdpruner" not in no_text
    assert "dart" not in no_text  # of a text's keys
    assert "divprune" in no_text


def test_a_model_is_asked_for_what_it_shows() -> None:
    clip, siglip = listed("--model", "clip_vision_model"), listed("--model", "siglip_vision_model")
    assert clip == listed("--model", "transformers:clip_vision_model")
    assert "fastervlm" in clip - siglip
    assert {"evoprune", "tome", "downsample"} <= clip & siglip
    assert not {"fastv", "divprune"} & clip
    whole = listed("--model", "qwen2_vl")
    assert {"fastv", "divprune", "evoprune"} <= whole
    assert not {"downsample", "fastervlm"} & whole


def test_the_options_are_combined() -> None:
    found = listed("--stage", "block", "--needs-no", "cls", "--model", "qwen2_vl")
    blocks, free = listed("--stage", "block"), listed("--needs-no", "cls")
    assert found == blocks & free & listed("--model", "qwen2_vl")
    assert {"evoprune", "tome", "pool"} <= found


def test_what_fits_can_be_attached_and_what_does_not_cannot() -> None:
    """The answer for a model without weights is the one that attach gives."""
    name = "vit_tiny_patch16_224"
    fits = wanted(None, [], name).fit
    vit = timm.create_model(name, depth=4, num_classes=3)
    for recipe in ("evoprune", "fastervlm", "divprune", "fastv", "cdpruner", "downsample"):
        zoo = tokenzoo.build(recipe, keep=49)
        if fits(zoo.recipe):
            zoo.attach(vit).detach()
        else:
            with pytest.raises((AttachError, MissingEvidenceError)):
                zoo.attach(vit)


def test_a_recipe_that_wants_options_first_is_named(needy) -> None:
    result = call("list", "--stage", "block")
    assert "left out, because they want options first: needy" in result.output
    assert not any(line.startswith("needy") for line in result.output.splitlines())
    assert "left out" not in call("list").output


@pytest.mark.usefixtures("needy")
def test_a_recipe_that_wants_options_can_be_described() -> None:
    assert "Its parts depend on keep." in call("describe", "needy").output


def test_where_none_fits_the_answer_is_no() -> None:
    result = call("list", "--stage", "embedded")
    assert (result.exit_code, result.stdout) == (1, "no recipe fits\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--stage", "blok"], "no stage 'blok'; did you mean 'block'? there are block, embedded"),
        (["--needs-no", "clz"], "no evidence 'clz'; did you mean 'cls'?"),
        (["--needs-no", "cls,,x"], "--needs-no 'cls,,x' has an empty item"),
        (["--model", "qwen2_v"], "has no model 'qwen2_v'"),
        (["--model", "qwen2_v"], "Types of transformers near it: qwen2_vl"),
        (["--model", "resnet18"], "it is not a vision transformer"),
        (["scorers", "--stage", "block"], "leave them out with 'scorers'"),
        (["adapters", "--model", "llava"], "leave them out with 'adapters'"),
    ],
)
def test_what_is_not_known_is_an_error_of_ours(arguments, complaint) -> None:
    result = call("list", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("tokenzoo: ")
    assert complaint in result.stderr
