"""Whatever is handed in, an error is one of ours, and short: none of torch, Python or JSON."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.masked import masked_tensor

import tokenzoo
from tests.adapters.models import VIT, images, traces
from tests.mutants import adapters as mutants
from tests.refusals import refused, typed
from tokenzoo import TokenMap, plugins
from tokenzoo.cli.viz_images import load as load_weights
from tokenzoo.errors import LONGEST, PluginError, TokenzooError
from tokenzoo.testing import Example
from tokenzoo.tools import onnx, timing

build = tokenzoo.build
EXAMPLE = Example.drawn(prefix=0, dtype=torch.float32)
SHOWN = {**EXAMPLE.shown(), "mass": EXAMPLE.mass, "protected": EXAMPLE.protected}


class NoRepr:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


ODD = (
    *(None, float("nan"), 1e300, -1, 2**31, 2**63, 10**5000, -(10**5000), "a", "", "\0", [], {}),
    *(object(), True, 1j, torch.ones(2), np.ones(3), np.int64(3), NoRepr(), b"a", int, "a" * 10**6),
)


# ------------------------------------------------------------------------------------- tensors


def masked(x: Tensor) -> Tensor:
    with warnings.catch_warnings(action="ignore"):  # a prototype
        return masked_tensor(x.float(), torch.ones_like(x, dtype=torch.bool))


# Tensors of another make, and what the message says.
MAKES: dict[str, Callable[[Tensor], Any]] = {
    "torch.sparse_coo": lambda x: x.to_sparse(),
    "torch.sparse_csr": lambda x: x.to_sparse_csr(),
    "nested": lambda x: torch.nested.nested_tensor([x[0], x[1][:-1]]),
    "nested, jagged": lambda x: torch.nested.nested_tensor([*x], layout=torch.jagged),
    "dequantize()": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8),
    "MaskedTensor": masked,
    "not initialised": lambda x: nn.parameter.UninitializedParameter(),
    "float8_e5m2": lambda x: x.to(torch.float8_e5m2),
    "complex64": lambda x: x.cfloat(),
    "ndarray": lambda x: x.numpy(),
    "list": lambda x: x.tolist(),
    "shape": lambda x: x.sum(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("name", ["x", "mass", "keys", "text", "cls_attention", "protected"])
def test_a_tensor_of_another_make_is_refused_by_name(name: str, make: str) -> None:
    shown = {"x": EXAMPLE.x, **SHOWN, "protected": None}
    shown[name] = MAKES[make]({"x": EXAMPLE.x, **SHOWN}[name])
    word = make.partition(",")[0]
    refused(lambda: build("visionzip", keep=4).reduce(**shown), name, word)


@pytest.mark.parametrize("make", [make for make in MAKES if make != "complex64"])
def test_what_is_unmerged_is_dense(make: str) -> None:
    reduced = build("divprune", keep=4).reduce(EXAMPLE.x)
    refused(lambda: reduced.unmerge(MAKES[make](reduced.x)), "y", make.partition(",")[0])


@pytest.mark.parametrize("fill", [10**400, "a", 1e300, -(10**5000)], ids=range(4))
def test_what_fills_is_a_number_that_the_dtype_holds(fill: Any) -> None:
    reduced = build("divprune", keep=4).reduce(EXAMPLE.x)
    refused(lambda: reduced.unmerge(reduced.x, fill=fill), "fill")


@pytest.mark.parametrize("name", ["evoprune", "cdpruner", "visionzip", "pool"])
@pytest.mark.parametrize("protected", [True, False])
def test_a_batch_without_images_gives_none_and_no_channels_are_refused(
    name: str, protected: bool
) -> None:
    zoo = build(name, keep=6)
    shown = {**SHOWN, "protected": EXAMPLE.protected if protected else None}
    none = {k: v[:0] if isinstance(v, Tensor) else v for k, v in shown.items()}
    found = zoo.reduce(EXAMPLE.x[:0], **none)
    assert found.x.shape == (0, 6, 5)
    assert found.plan.dst.shape == (0, 12)
    thin = {k: v[..., :0] if k in ("keys", "queries", "text") else v for k, v in shown.items()}
    refused(lambda: zoo.reduce(EXAMPLE.x[..., :0], **thin), "(2, 12, 0)", "channel")
    if not protected:
        refused(lambda: zoo.reduce(EXAMPLE.x, **thin), "(2, 2, 12, 0)", "channel")


@pytest.mark.parametrize("name", ["trim", "cdpruner"])
def test_a_text_in_another_precision_is_compared_in_the_finer_one(name: str) -> None:
    x, text = EXAMPLE.x, EXAMPLE.text
    kept = [
        build(name, keep=4).reduce(*pair[:1], text=pair[1]).plan.keep.tolist()
        for pair in ((x.double(), text.double()), (x.double(), text), (x, text.double()))
    ]
    assert kept[1:] == kept[:1] * 2


@pytest.mark.parametrize("name", ["mass", "protected", "y"])
def test_tensors_elsewhere_are_refused(name: str) -> None:
    zoo, there = build("divprune", keep=4), {**SHOWN, "y": EXAMPLE.x[:, :4]}[name].to("meta")
    if name == "y":
        refused(lambda: zoo.reduce(EXAMPLE.x).unmerge(there), "y", "meta")
    else:
        refused(lambda: zoo.reduce(EXAMPLE.x, **{name: there}), name, "meta")


# -------------------------------------------------------------------------------- odd arguments

TAKES: dict[str, Callable[[Any], object]] = {
    "build": build,
    "load": tokenzoo.load,
    "describe": tokenzoo.describe,
    "list": tokenzoo.list_recipes,
    "recipe": tokenzoo.Recipe,
    "stage": tokenzoo.Stage,
    "keep": lambda value: build(build("evoprune").recipe, keep=value),
    "flops": lambda value: build("evoprune", flops=value),
    "step_at": lambda value: build("evoprune").recipe.step_at(value),
    **{
        name: lambda value, name=name: build("evoprune").plan(
            **{"tokens": 20, "depth": 12, name: value}
        )
        for name in ("tokens", "depth", "prefix", "width", "hidden")
    },
    **{
        name: lambda value, name=name: build("fastv", keep=4).reduce(
            EXAMPLE.x, **SHOWN | {name: value}
        )
        for name in ("prefix", "grid", "frames", "depth", "at", "mass", "protected")
    },
    "attach": lambda value: build("evoprune").attach(value),
    "on_reduce": lambda value: build("evoprune").attach(nn.Identity(), on_reduce=value),
    "sum": lambda value: TokenMap.identity(1, 4).sum(value),
    "export": lambda value: onnx.export(value, nn.Identity(), EXAMPLE.x, "a.onnx"),
    "measure": lambda value: timing.interleaved({"a": list}, rounds=1, baseline=value),
    "check": lambda value: tokenzoo.testing.check_recipe(value, examples=1),
}


@pytest.mark.parametrize("name", TAKES)
def test_an_odd_argument_works_or_is_an_error_of_ours(name: str) -> None:
    for value in ODD:
        try:
            TAKES[name](value)
        except TokenzooError as error:
            assert len(str(error)) <= LONGEST  # noqa: PT017


@pytest.mark.parametrize(
    "path", ["a\0b", "\0", b"a", None, 3, object(), NoRepr(), "none/a", "a" * 5000], ids=range(9)
)
def test_what_is_no_path_is_refused(path: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    refused(lambda: build("tome").save(path), "Name a file")
    refused(lambda: tokenzoo.load(path), "not a saved recipe")


@pytest.mark.parametrize(
    "value", ["a" * 10**6, [1] * 10**5, {i: i for i in range(10**5)}, 10**5000], ids=range(4)
)
def test_a_long_value_is_quoted_in_part(value: Any) -> None:
    with pytest.raises(TokenzooError) as caught:
        build("gprune", steps=value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "content", [b"", b"junk" * 100, [1, 2], {"a": 1}, {"state_dict": 3}, {1: torch.ones(2)}, None]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_are_none_are_refused(content: Any, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    refused(lambda: load_weights(nn.Linear(2, 2), path), "cannot be loaded into Linear")


# --------------------------------------------------------------------------- plugins, attach


def with_recipe(make: Callable[..., Any]) -> Any:
    """A plugin with a recipe of this name."""

    class Plugin:
        @tokenzoo.hookimpl
        def tokenzoo_recipes(self) -> dict[str, Any]:
            return {"mine": make}

    return plugins.registered(Plugin(), "mine")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: 3, "returns 3"),
        (lambda: None, "returns None"),
        (lambda: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_plugins_recipe_that_is_none_is_named_wherever_it_is_made(make: Any, words: str) -> None:
    with with_recipe(make):
        for call in (build, tokenzoo.describe):
            refused(lambda call=call: call("mine"), "'mine'", words, kind=PluginError)
        for command in (["list"], ["list", "--stage", "block"], ["describe", "mine"]):
            refused(typed(*command), "'mine'", words, kind=PluginError)


def test_a_plugins_recipe_is_checked_by_its_annotations() -> None:
    def mine(*, keep: int | float = 0.5, power: int = 2) -> tokenzoo.Recipe:
        return build("uniform", keep=keep).recipe if power % 2 == 0 else build("pool").recipe

    with with_recipe(mine):
        refused(lambda: build("mine", power="a"), "power='a'")
        refused(lambda: build("mine", power=2.0), "power=2.0")
        assert build("mine", power=4).name == "mine"


@pytest.mark.parametrize("recipe", ["evoprune", "tome"])
@pytest.mark.parametrize("kind", ["timm", "mutant"])
def test_attach_works_whatever_the_default_device_is(kind: str, recipe: str) -> None:
    model = VIT.build(depth=3) if kind == "timm" else mutants.tiny(mutants.Adapted)()
    x = images(model) if kind == "timm" else mutants.images()
    with plugins.registered(mutants, "mutants"), torch.no_grad():
        with build(recipe, keep=0.5).attach(model):
            wanted = model(x)
        with torch.device("meta"):
            attached = build(recipe, keep=0.5).attach(model)
        with attached:
            assert torch.equal(model(x), wanted)
    assert traces(model) == []
