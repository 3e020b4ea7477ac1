"""Arguments of the model in lmms-eval: what they become, what is refused. It need not be installed."""

from __future__ import annotations

import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tokenzoo
from tokenzoo._core.options import options_of
from tokenzoo.errors import BadArgumentError, MissingDependencyError, UnknownNameError
from tokenzoo.evaluation.lmms import NAME, manifest
from tokenzoo.evaluation.lmms.arguments import OWN, parse, read_value
from tokenzoo.plugins import collect

GIVEN: dict[str, Any] = {"pretrained": "folder", "recipe": "evoprune", "device": "cpu"}


def test_every_argument_arrives() -> None:
    own: dict[str, Any] = {"dtype": "float16", "attn_implementation": "sdpa", "frames": 8}
    found = parse({**GIVEN, **own, "max_pixels": 784, "batch_size": "4", "ctr": 0.5, "keep": 9})
    assert (found.pretrained, found.dtype, found.device) == ("folder", "float16", "cpu")
    assert (found.attention, found.frames, found.batch_size) == ("sdpa", 8, 4)
    assert found.pixels == {"max_pixels": 784}
    assert found.method is not None
    assert found.method.options == {"ctr": 0.5, "keep": 9}
    assert parse({**GIVEN, "recipe": "none"}).method is None
    for keep in (1, 64, 0.25, 1.0):  # a count stays a count, and a share a share
        method = parse({**GIVEN, "keep": keep}).method
        assert method is not None
        assert (method.recipe.keep, type(method.recipe.keep)) == (keep, type(keep))


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        *[("[1, 2]", [1, 2]), ("null", None), ("size", "size"), ("4", 4)],
        *[(-2.0, -2), (-0.5, -0.5), (1.0, 1.0), (2, 2), (True, True)],
    ],
)
def test_values_that_lmms_eval_leaves_as_text_or_makes_floats(value: Any, wanted: Any) -> None:
    found = read_value(value)
    assert (found, type(found)) == (wanted, type(wanted))


@pytest.mark.parametrize("by_name", [True, False])
def test_options_come_before_those_of_a_file(by_name: bool, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    method = tokenzoo.build("evoprune", keep=0.5, ctr=0.125)
    (method if by_name else tokenzoo.build(method.recipe)).save(path)
    as_saved, other = (parse({**GIVEN, "recipe": str(path), **keep}) for keep in ({}, {"keep": 7}))
    assert as_saved.method is not None
    assert other.method is not None
    assert as_saved.method.recipe == method.recipe
    assert other.method.recipe == tokenzoo.build("evoprune", keep=7, ctr=0.125).recipe


def test_no_recipe_has_an_option_with_the_name_of_an_argument() -> None:
    taken = {*OWN, "batch_size", "max_batch_size"}
    for name, factory in collect("recipes").items():
        assert taken.isdisjoint(option.name for option in options_of(factory)), name


BAD = [
    *[("recipe", None), ("pretrained", 7), ("keep", 2.0), ("keep", "many"), ("dtype", "int8")],
    *[("attn_implementation", "x"), ("device", "gpu"), ("device", 0.5), ("frames", 0)],
    *[("min_pixels", 0.5), ("batch_size", "auto"), ("max_batch_size", 4)],
]


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        *[({name: value}, BadArgumentError, f"{name}={value!r}") for name, value in BAD],
        ({"recipe": ""}, BadArgumentError, "'none' is the bare model"),
        ({"recipe": "evoprun"}, UnknownNameError, "'evoprune'"),
        ({"kep": 8}, UnknownNameError, "'kep'.*'keep'"),
        ({"recipe": "none", "keep": 8}, BadArgumentError, "keep: recipe=none"),
        ({"recipe": "missing.json"}, BadArgumentError, r"missing\.json"),
    ],
)
def test_refused(changed: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        parse({**GIVEN, **changed})


@pytest.mark.parametrize("name", ["pretrained", "recipe"])
def test_what_must_be_given(name: str) -> None:
    with pytest.raises(BadArgumentError, match=f"{name} is missing.*--model_args pretrained="):
        parse({key: value for key, value in GIVEN.items() if key != name})


@pytest.mark.parametrize(
    ("gpu", "device", "processes", "wanted"),
    [
        (True, None, {}, "cuda"),
        (True, None, {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "cuda:1"),
        (True, "cuda:0", {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "cuda:0"),
        (True, "auto", {}, "auto"),
        (False, None, {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "cpu"),
    ],
)
def test_devices(
    gpu: bool, device: str | None, processes: Any, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    for name, value in processes.items():
        monkeypatch.setenv(name, value)
    given = {name: value for name, value in GIVEN.items() if name != "device"}
    assert parse(given if device is None else {**given, "device": device}).device == wanted
    if not gpu:
        with pytest.raises(BadArgumentError, match="device='cuda'"):
            parse({**GIVEN, "device": "cuda"})


def test_the_entry_point_names_a_class_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = SimpleNamespace(ModelManifest=lambda name, chat_class_path: (name, chat_class_path))
    for name in ("lmms_eval", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "lmms_eval.models.registry_v2", registry)
    name, path = manifest()
    module, _, kind = path.rpartition(".")
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    assert f"class {kind}(lmms):" in Path(spec.origin).read_text()
    assert name == NAME
    root = Path(tokenzoo.__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lmms_eval.models"] == {
        "tokenzoo": f"{manifest.__module__}:{manifest.__name__}"
    }


def test_without_lmms_eval_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval.models.registry_v2", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tokenzoo\[lmms-eval\]'"):
        manifest()
