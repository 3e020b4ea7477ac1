"""`tokenzoo list`: everything that has a name, and which recipes fit a stage, an evidence, a model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import timm

import tokenzoo
from tests.cli.calling import call, done
from tokenzoo import plugins
from tokenzoo.cli.list_ import KINDS
from tokenzoo.cli.list_filters import wanted
from tokenzoo.errors import AttachError, MissingEvidenceError


def listed(*options: str) -> dict[str, str]:
    """Lines of what is listed, by their names."""
    lines = done("list", *options).output.splitlines()[1:]
    return {line.split()[0]: line for line in lines if line[:1].strip()}


@pytest.fixture
def needy() -> Iterator[None]:
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


def needs(name: str) -> set[str]:
    return {part for need in tokenzoo.build(name).recipe.needs for part in need.split("@")}


@pytest.mark.parametrize("kind", KINDS)
def test_list_names_everything(kind: str) -> None:
    known = tokenzoo.list_adapters() if kind == "adapters" else plugins.names(kind)  # pyright: ignore[reportArgumentType]
    assert known
    assert listed(kind).keys() == set(known)


def test_recipes_are_shown_with_their_stages_and_the_controls_are_marked() -> None:
    shown = listed()
    assert "features" in shown["visionzip"]
    assert "image" in shown["downsample"]
    controls = {name for name, line in shown.items() if "control:" in line}
    assert controls == {"random", "uniform", "pool", "downsample", "every_kth_frame"}


@pytest.mark.parametrize("stage", ["image", "block", "features", "projected", "llm"])
def test_a_stage_is_where_a_step_works(stage: str) -> None:
    recipes = {name: tokenzoo.build(name).recipe for name in tokenzoo.list_recipes()}
    expected = {n for n, r in recipes.items() if any(s.stage.name == stage for s in r.steps)}
    assert expected
    assert listed("--stage", stage).keys() == expected


def test_evidence_that_is_not_needed() -> None:
    every = set(tokenzoo.list_recipes())
    free = {name for name in every if "cls_attention" not in needs(name)}
    assert "fastervlm" not in free
    assert listed("--needs-no", "cls").keys() == free
    assert listed("--needs-no", "cls_attention").keys() == free
    both = {name for name in every if needs(name).isdisjoint({"cls_attention", "grid"})}
    assert listed("--needs-no", "cls,grid").keys() == both
    assert listed("--needs-no", "cls", "--needs-no", "grid").keys() == both
    no_text = listed("--needs-no", "text").keys()
    assert not {"cdpruner", "dart"} & no_text  # dart: of a text's keys
    assert "divprune" in no_text


def test_a_model_is_asked_for_what_it_shows() -> None:
    clip = listed("--model", "clip_vision_model").keys()
    siglip = listed("--model", "siglip_vision_model").keys()
    assert clip == listed("--model", "transformers:clip_vision_model").keys()
    assert "fastervlm" in clip - siglip
    assert {"evoprune", "tome", "downsample"} <= clip & siglip
    assert not {"fastv", "divprune"} & clip
    whole = listed("--model", "qwen2_vl").keys()
    assert {"fastv", "divprune", "evoprune"} <= whole
    assert not {"downsample", "fastervlm"} & whole
    found = listed("--stage", "block", "--needs-no", "cls", "--model", "qwen2_vl").keys()
    assert (
        found == listed("--stage", "block").keys() & listed("--needs-no", "cls").keys() & whole
    )  # the options are combined
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


@pytest.mark.usefixtures("needy")
def test_a_recipe_that_wants_options_first_is_named() -> None:
    assert listed()["needy"].split()[1] == "?"
    assert "needy" not in listed("--stage", "block")
    output = call("list", "--stage", "block").output
    assert "left out, because they want options first: needy" in output
    assert "left out" not in call("list").output
    assert "Its parts depend on keep." in call("describe", "needy").output


def test_where_none_fits_the_answer_is_no() -> None:
    result = call("list", "--stage", "embedded")
    assert (result.exit_code, result.stdout) == (1, "no recipe fits\n")
