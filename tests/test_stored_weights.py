"""The weights of learned parts as files: what is saved is loaded, and what does not fit is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tokenzoo
from tests.adapters.models import VIT, images
from tests.refusals import refused
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import AttachError
from tokenzoo.matchers import Slimming
from tokenzoo.mergers import SoftSum
from tokenzoo.schedules import Geometric

RECIPES = ("dynamicvit", "patchmerger", "sinkhorn", "sit")
pytestmark = pytest.mark.filterwarnings("ignore::tokenzoo.errors.UntrainedWarning")


def by_hand() -> tokenzoo.Method:
    part = Slimming()
    step = Step(Stage.BLOCK, Geometric((1, 3)), part, SoftSum(part))
    return tokenzoo.build(Recipe(step, keep=20))


def trained(name: str) -> tuple[tokenzoo.Method, Any]:
    """A recipe with weights that are not its first ones, and its model."""
    model = VIT.build(depth=4)
    method = by_hand() if name == "by hand" else tokenzoo.build(name, keep=20, at=(1, 3))
    with method.attach(model) as attached, torch.no_grad():
        for parameter in attached.learned.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return method, model


@pytest.mark.parametrize("name", [*RECIPES, "by hand"])
def test_a_loaded_recipe_says_what_the_saved_one_said(name: str, tmp_path: Path) -> None:
    method, model = trained(name)
    path = tmp_path / "recipe.json"
    method.save(path)
    assert {one.name for one in tmp_path.iterdir()} == {"recipe.json", "recipe.safetensors"}
    with safe_open(tmp_path / "recipe.safetensors", "pt") as file:
        about = json.loads(file.metadata()["made_for"])
    assert (about["model"], about["width"]) == ("VisionTransformer", 48)
    assert len(about["counts"]) == 4
    (tmp_path / "other").mkdir()
    for file in ("recipe.json", "recipe.safetensors"):  # the two are moved together
        (tmp_path / file).rename(tmp_path / "other" / file)
    loaded = tokenzoo.load(tmp_path / "other" / "recipe.json")
    assert loaded.recipe == method.recipe
    x, found = images(model), []
    for one in (method, loaded):
        with one.attach(model), torch.no_grad():
            found.append(model(x))
    assert torch.equal(*found)
    step = loaded.recipe.steps[0]
    if isinstance(step.merger, SoftSum):
        assert step.merger.of is step.matcher  # one set of weights, not two
    other = VIT.build(depth=4, embed_dim=24)
    refused(lambda: loaded.attach(other), "weights for VisionTransformer", kind=AttachError)


def test_a_recipe_without_weights_is_one_file(tmp_path: Path) -> None:
    for name in ("evit", "sit"):  # those of sit are not made yet
        tokenzoo.build(name).save(tmp_path / "recipe.json")
        assert [one.name for one in tmp_path.iterdir()] == ["recipe.json"]
        assert tokenzoo.load(tmp_path / "recipe.json").recipe == tokenzoo.build(name).recipe


def cut(data: bytes) -> bytes:
    return data[:-7]


def flip(data: bytes) -> bytes:
    return data[:-7] + bytes([data[-7] ^ 1]) + data[-6:]


@pytest.mark.parametrize("spoil", [cut, flip, lambda data: b"", lambda data: b"\x80\x04K\x01."])
def test_damage_is_seen(spoil: Callable[[bytes], bytes], tmp_path: Path) -> None:
    trained("sit")[0].save(tmp_path / "recipe.json")
    file = tmp_path / "recipe.safetensors"
    file.write_bytes(spoil(file.read_bytes()))
    refused(lambda: tokenzoo.load(tmp_path / "recipe.json"), "recipe.safetensors", "SHA-256")


def rewrite(
    folder: Path, change: Callable[[dict[str, Any], dict[str, str]], object], *, raw: bytes = b""
) -> None:
    """Change the tensors and the header of a file, and have the recipe name what came out."""
    file, recipe = folder / "recipe.safetensors", folder / "recipe.json"
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        about = dict(opened.metadata())
    change(tensors, about)
    save_file(tensors, file, about)
    if raw:
        file.write_bytes(raw)
    content = json.loads(recipe.read_text())
    content["weights"]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    recipe.write_text(json.dumps(content))


def _nothing(tensors: Any, about: Any) -> None:
    del tensors, about


def _narrow(tensors: dict[str, Any], about: dict[str, str]) -> None:
    del tensors
    about["made_for"] = json.dumps({**json.loads(about["made_for"]), "width": 47})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors, about: tensors.pop("0.1.two"), ("no 0.1.two",)),
        (lambda tensors, about: tensors.update(more=torch.ones(1)), ("more, which no part has",)),
        (lambda tensors, about: tensors.update({"0.1.gain": torch.ones(3)}), ("[3], not [48]",)),
        (lambda tensors, about: about.pop("made_for"), ("does not name the model",)),
        (lambda tensors, about: about.update(made_for="{}"), ("recipe.safetensors",)),
        (lambda tensors, about: about.update(made_for="["), ("recipe.safetensors",)),
        (_narrow, ("of shape [48], not [47]",)),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: Any, words: Any, tmp_path: Path) -> None:
    trained("sit")[0].save(tmp_path / "recipe.json")
    rewrite(tmp_path, change)
    refused(lambda: tokenzoo.load(tmp_path / "recipe.json"), *words)


def test_another_recipes_weights_are_refused(tmp_path: Path) -> None:
    trained("sinkhorn")[0].save(tmp_path / "recipe.json")
    other = (tmp_path / "recipe.safetensors").read_bytes()
    trained("sit")[0].save(tmp_path / "recipe.json")
    rewrite(tmp_path, _nothing, raw=other)
    refused(lambda: tokenzoo.load(tmp_path / "recipe.json"), "0.1.centres, which no part has")


@pytest.mark.parametrize(
    "said",
    [
        None,
        3,
        [],
        {"file": "recipe.safetensors"},
        {"file": 3, "sha256": "a"},
        {"file": "../recipe.safetensors", "sha256": "a"},
        {"file": "/etc/passwd", "sha256": "a"},
        {"file": "", "sha256": "a"},
    ],
)
def test_the_file_is_next_to_the_recipe(said: Any, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    tokenzoo.build("sit").save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights": said}))
    refused(
        lambda: tokenzoo.load(path), "weights=" if said != {"file": "", "sha256": "a"} else "read"
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    trained("sit")[0].save(tmp_path / "recipe.json")
    (tmp_path / "recipe.safetensors").unlink()
    refused(lambda: tokenzoo.load(tmp_path / "recipe.json"), "recipe.safetensors", "two files")


def test_the_recipe_is_not_written_over_its_weights(tmp_path: Path) -> None:
    refused(lambda: trained("sit")[0].save(tmp_path / "recipe.safetensors"), ".json")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("number", [7, None, [], "a"])
def test_a_part_that_is_named_again_must_be_there(number: Any, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    by_hand().save(path)
    content = json.loads(path.read_text())
    merger = content["steps"][0]["step"]["merger"]["options"]
    assert merger == {"of": {"again": 0}}
    merger["of"]["again"] = number
    path.write_text(json.dumps(content))
    refused(lambda: tokenzoo.load(path), "is not a saved recipe")
