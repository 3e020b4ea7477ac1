"""Whatever is handed in, an error is one of ours, and short: none of torch, Python or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import tokenzoo
from tests.adapters.models import VIT, images, traces
from tests.mutants import adapters as mutants
from tokenzoo import TokenMap, plugins
from tokenzoo.cli import app
from tokenzoo.errors import LONGEST, BadArgumentError, PluginError, TokenzooError
from tokenzoo.serialization import LARGEST
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


def odd_ids(value: object) -> str:
    return (
        f"{type(value).__name__}-{value!r:.20}"
        if isinstance(value, float | str)
        else type(value).__name__
    )


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(TokenzooError) as caught:
        call()
    message = str(caught.value)
    assert len(message) <= LONGEST
    assert all(word in message for word in words), message


def ours(call: Callable[[], object]) -> None:
    """Call it: nothing, or an error of ours that is short."""
    try:
        call()
    except TokenzooError as error:
        assert len(str(error)) <= LONGEST  # noqa: PT017


# ------------------------------------------------------------------------------------- tensors


def masked(x: Tensor) -> Tensor:
    from torch.masked import masked_tensor

    return masked_tensor(x.float(), torch.ones_like(x, dtype=torch.bool))


MAKES: dict[str, tuple[Callable[[Tensor], Any], tuple[str, ...]]] = {
    "sparse": (lambda x: x.to_sparse(), ("torch.sparse_coo", "to_dense()")),
    "csr": (lambda x: x.to_sparse_csr(), ("torch.sparse_csr", "to_dense()")),
    "nested": (lambda x: torch.nested.nested_tensor([x[0], x[1][:-1]]), ("nested",)),
    "jagged": (lambda x: torch.nested.nested_tensor([*x], layout=torch.jagged), ("nested",)),
    "quantised": (
        lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8),
        ("dequantize()",),
    ),
    "masked": (masked, ("MaskedTensor", "get_data()")),
    "lazy": (lambda x: nn.parameter.UninitializedParameter(), ("not initialised",)),
    "float8": (lambda x: x.to(torch.float8_e5m2), ("float8_e5m2",)),
    "complex": (lambda x: x.cfloat(), ("complex64",)),
    "numpy": (lambda x: x.numpy(), ("ndarray",)),
    "list": (lambda x: x.tolist(), ("list",)),
    "one number": (lambda x: x.sum(), ("shape",)),
}
GIVEN = ("x", "mass", "keys", "text", "cls_attention", "protected")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("name", GIVEN)
def test_a_tensor_of_another_make_is_refused_by_name(name: str, make: str) -> None:
    make_it, words = MAKES[make]
    value = make_it({"x": EXAMPLE.x, **SHOWN}[name])
    x = value if name == "x" else EXAMPLE.x
    shown = {**SHOWN, "protected": None} | ({} if name == "x" else {name: value})
    refused(lambda: build("visionzip", keep=4).reduce(x, **shown), name, *words)


@pytest.mark.parametrize("make", [make for make in MAKES if make not in ("complex",)])
def test_what_is_unmerged_is_dense(make: str) -> None:
    reduced = build("divprune", keep=4).reduce(EXAMPLE.x)
    refused(lambda: reduced.unmerge(MAKES[make][0](reduced.x)), "y", *MAKES[make][1])


@pytest.mark.parametrize("fill", [10**400, "a", 1e300, -(10**5000)], ids=range(4))
def test_what_fills_is_a_number_that_the_dtype_holds(fill: Any) -> None:
    reduced = build("divprune", keep=4).reduce(EXAMPLE.x)
    refused(lambda: reduced.unmerge(reduced.x, fill=fill), "fill")


@pytest.mark.parametrize("name", ["evoprune", "cdpruner", "visionzip", "pool"])
@pytest.mark.parametrize("protected", [True, False])
def test_a_batch_without_images_gives_none_and_no_channels_are_refused(
    name: str, protected: bool
) -> None:
    shown = {**SHOWN, "protected": EXAMPLE.protected if protected else None}
    none = {k: v[:0] if isinstance(v, Tensor) else v for k, v in shown.items()}
    found = build(name, keep=6).reduce(EXAMPLE.x[:0], **none)
    assert found.x.shape == (0, 6, 5)
    assert found.plan.dst.shape == (0, 12)
    thin = {k: v[..., :0] if k in ("keys", "queries", "text") else v for k, v in shown.items()}
    refused(lambda: build(name, keep=6).reduce(EXAMPLE.x[..., :0], **thin), "(2, 12, 0)", "channel")
    if not protected:
        refused(lambda: build(name, keep=6).reduce(EXAMPLE.x, **thin), "(2, 2, 12, 0)", "channel")


def test_a_text_in_another_precision_is_compared_in_the_finer_one() -> None:
    for name in ("trim", "cdpruner"):
        zoo = build(name, keep=4)
        wanted = zoo.reduce(EXAMPLE.x.double(), text=EXAMPLE.text.double()).plan.keep
        assert torch.equal(zoo.reduce(EXAMPLE.x.double(), text=EXAMPLE.text).plan.keep, wanted)
        assert torch.equal(zoo.reduce(EXAMPLE.x, text=EXAMPLE.text.double()).plan.keep, wanted)


def test_tensors_elsewhere_are_refused() -> None:
    zoo, x = build("divprune", keep=4), EXAMPLE.x
    refused(lambda: zoo.reduce(x, mass=EXAMPLE.mass.to("meta")), "mass", "meta")
    refused(lambda: zoo.reduce(x, protected=EXAMPLE.protected.to("meta")), "protected", "meta")
    refused(lambda: zoo.reduce(x).unmerge(x[:, :4].to("meta")), "y", "meta")
    for protected in (None, EXAMPLE.protected):
        refused(lambda p=protected: zoo.reduce(x, protected=p, at=3), "at=3", "it maps a layer")
        refused(lambda p=protected: zoo.reduce(x, protected=p, at={1.5: {}}), "1.5", "a name")
        refused(lambda p=protected: zoo.reduce(x, protected=p, at={-2: 3}), "at[-2]", "maps names")
    refused(lambda: zoo.reduce(x, at={-2: {3: x}}), "3", "cls_attention")
    refused(
        lambda: build("ats", keep=4).reduce(
            x, values=EXAMPLE.values, cls_attention=torch.ones(2, 3, 12)
        ),
        *("3 heads", "values 2"),
    )


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
        ours(lambda value=value: TAKES[name](value))


@pytest.mark.parametrize(
    "path", ["a\0b", "\0", b"a", None, 3, object(), NoRepr(), "none/a", "a" * 5000], ids=range(9)
)
def test_what_is_no_path_is_refused(path: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    refused(lambda: build("tome").save(path), "Name a file")
    refused(lambda: tokenzoo.load(path), "not a saved recipe")


# ---------------------------------------------------------------------------------------- files


def nested(depth: int) -> str:
    part = {"part": ["scorers", "feature_norm"], "options": {}}
    for _ in range(depth):
        part = {"part": ["combined", "Normalized"], "options": {"scorer": part}}
    return json.dumps({"tokenzoo": 1, "steps": [part], "keep": 1})


FILES: dict[str, tuple[str, str]] = {
    "lists in lists": (
        '{"tokenzoo": 1, "steps": ' + "[" * 800 + "]" * 800 + "}",
        "nested too deep",
    ),
    "parts in parts": (nested(300), "nested too deep"),
    "a list for an option": (
        '{"tokenzoo": 1, "recipe": "tome", "options": {"r": ' + "[" * 300 + "]" * 300 + "}}",
        "nested too deep",
    ),
    "true for a version": ('{"tokenzoo": true, "recipe": "tome", "options": {}}', "format True"),
    "a float for a version": ('{"tokenzoo": 1.0, "recipe": "tome", "options": {}}', "format 1.0"),
    "a long name": (
        json.dumps({"tokenzoo": 1, "recipe": "x" * 900_000, "options": {}}),
        "no recipe",
    ),
    "a long version": (json.dumps({"tokenzoo": "x" * 900_000}), "upgrade tokenzoo"),
    "a long key": (json.dumps({"tokenzoo": 1, "x" * 900_000: 1}), "is not one of"),
    "a long option": (
        json.dumps({"tokenzoo": 1, "recipe": "tome", "options": {"x" * 900_000: 1}}),
        "no option of tome",
    ),
    "a long value": (
        json.dumps({"tokenzoo": 1, "recipe": "tome", "options": {"r": ["x" * 900_000]}}),
        "='xxx",
    ),
    "digits": ('{"tokenzoo": ' + "9" * 5000 + "}", "not a saved recipe"),
    "no part": (
        '{"tokenzoo": 1, "recipe": "tome", "options": {"r": {"part": [[1], []], "options": 1}}}',
        "not a saved recipe",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_recipe_is_refused_in_few_words(name: str, tmp_path: Path) -> None:
    content, words = FILES[name]
    (tmp_path / "a.json").write_text(content)
    refused(lambda: tokenzoo.load(tmp_path / "a.json"), words)


def test_no_more_of_a_file_is_read_than_a_recipe_has(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.write(b'{"tokenzoo": 1, "recipe": "')
        file.truncate(10**9)  # of which nothing is stored
    refused(lambda: tokenzoo.load(tmp_path / "a.json"), f"more than {LARGEST} bytes")


@pytest.mark.parametrize(
    ("kind", "option", "value", "words"),
    [
        ("matcher", "pairs", None, "pairs=None; it must be a PairScorer"),
        ("matcher", "split", 3, "split=3; it must be a Split"),
        ("schedule", "start", True, "start=True; it must be an int >= 0"),
        ("schedule", "every", 2**63, "every=9223372036854775808; it must be an int >= 1"),
        (None, "merger", [], "merger=(); it must be a Merger"),
        (None, "schedule", 0, "schedule=0; it must be a Schedule"),
    ],
)
def test_a_wrong_part_in_a_part_is_found_when_it_is_loaded(
    kind: str | None, option: str, value: Any, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    build(build("evoprune").recipe).save(path)
    content = json.loads(path.read_text())
    step = content["steps"][0]["step"]
    (step if kind is None else step[kind]["options"])[option] = value
    path.write_text(json.dumps(content))
    refused(lambda: tokenzoo.load(path), words)


# --------------------------------------------------------------------------------- plugins, CLI


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: 3, "returns 3"),
        (lambda: None, "returns None"),
        (lambda: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_plugins_recipe_that_is_none_is_named_wherever_it_is_made(made: Any, words: str) -> None:
    class Plugin:
        @tokenzoo.hookimpl
        def tokenzoo_recipes(self) -> dict[str, Any]:
            return {"odd": made}

    with plugins.registered(Plugin(), "odd"):
        for call in (lambda: build("odd"), lambda: tokenzoo.describe("odd")):
            with pytest.raises(PluginError, match="'odd'") as caught:
                call()
            assert words in str(caught.value)
        for command in (["list"], ["list", "--stage", "block"], ["describe", "odd"]):
            told = CliRunner().invoke(app, command)
            assert told.exit_code == 2
            assert "Traceback" not in told.output


def test_a_plugins_recipe_is_checked_by_its_annotations() -> None:
    def mine(*, keep: int | float = 0.5, power: int = 2) -> tokenzoo.Recipe:
        return build("uniform", keep=keep).recipe if power % 2 == 0 else build("pool").recipe

    class Plugin:
        @tokenzoo.hookimpl
        def tokenzoo_recipes(self) -> dict[str, Any]:
            return {"mine": mine}

    with plugins.registered(Plugin(), "mine"):
        refused(lambda: build("mine", power="a"), "power='a'; it must be an int")
        refused(lambda: build("mine", power=2.0), "power=2.0; it must be an int")
        assert build("mine", power=4).name == "mine"


@pytest.mark.parametrize(
    "content", [b"", b"junk" * 100, [1, 2], {"a": 1}, {"state_dict": 3}, {1: torch.ones(2)}, None]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_are_none_are_refused(content: Any, suffix: str, tmp_path: Path) -> None:
    from tokenzoo.cli.viz_images import load

    path = tmp_path / f"a{suffix}"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    refused(lambda: load(nn.Linear(2, 2), path), "cannot be loaded into Linear", "state dict")


@pytest.mark.parametrize(
    "arguments", [("viz", "\0"), ("export", "digits", "a.onnx", "--keep", "9" * 5000)]
)
def test_commands_say_our_errors(arguments: tuple[str, ...]) -> None:
    told = CliRunner().invoke(app, list(arguments))
    assert told.exit_code == 2
    assert isinstance(told.exception, SystemExit)


# -------------------------------------------------------------------------------------- attach


def meta_models() -> dict[str, Callable[[], tuple[nn.Module, Tensor]]]:
    def timm() -> tuple[nn.Module, Tensor]:
        model = VIT.build(depth=3)
        return model, images(model)

    def mutant() -> tuple[nn.Module, Tensor]:
        return mutants.tiny(mutants.Adapted)(), mutants.images()

    return {"timm": timm, "mutant": mutant}


@pytest.mark.parametrize("model", meta_models())
@pytest.mark.parametrize("recipe", ["evoprune", "tome"])
def test_attach_works_whatever_the_default_device_is(model: str, recipe: str) -> None:
    with plugins.registered(mutants, "mutants"):
        made, x = meta_models()[model]()
        with torch.no_grad(), build(recipe, keep=0.5).attach(made):
            wanted = made(x)
        with torch.device("meta"):
            attached = build(recipe, keep=0.5).attach(made)
        try:
            with torch.no_grad():
                assert torch.equal(made(x), wanted)
        finally:
            attached.detach()
        assert traces(made) == []


@pytest.mark.parametrize("size", [None, 0.5, "a", [1], torch.ones(2)])
def test_an_identity_has_whole_numbers_of_tokens(size: Any) -> None:
    refused(lambda: TokenMap.identity(1, size), "tokens=", "int")
    refused(lambda: TokenMap.identity(size, 1), "batch=", "int")


def test_a_long_value_is_quoted_in_part() -> None:
    for value in ("a" * 10**6, [1] * 10**5, {i: i for i in range(10**5)}, 10**5000):
        with pytest.raises(BadArgumentError) as caught:
            build("gprune", steps=value)
        assert len(str(caught.value)) < 200
