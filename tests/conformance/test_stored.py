"""Attached models that accelerate offloads, that are saved, and whose linear layers are quantised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn

from tests.adapters.models import gap
from tests.conformance.chats import WAYS
from tests.conformance.specs import SOME, SPECS, expected, fresh, method, run, same

# In the tower, and in the language model.
OF_LLAVA = ("evoprune", "fastv")


def on_disk(model: Any, folder: Path) -> None:
    accelerate.disk_offload(model, folder, torch.device("cpu"))


def off_device(model: Any, folder: Path) -> None:
    del folder
    accelerate.cpu_offload(model, torch.device("cpu"))


def per_block(model: Any, folder: Path) -> None:
    """As a device_map does it: a hook of accelerate on every block, which moves its weights."""
    del folder
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    for path, module in list(model.named_modules()):
        if path.rpartition(".")[2].isdigit():
            start = f"{path}."
            inside = {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}
            hook = AlignDevicesHook(
                execution_device=torch.device("cpu"),
                offload=True,
                place_submodules=True,
                weights_map=inside,
            )
            add_hook_to_module(module, hook)


def dispatched(model: Any, folder: Path) -> None:
    """By a device_map with two places, as `from_pretrained(device_map=...)` makes it."""
    places = {f"model.{name}": "disk" for name, _ in model.model.named_children()}
    places |= {"model.vision_tower": "cpu", "lm_head": "cpu"}
    if hasattr(model.model, "image_newline"):
        places["model.image_newline"] = "cpu"
    accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=folder)
    assert model.hf_device_map == places


OFFLOADED = [
    (*case, offload)
    for offload in (on_disk, off_device, per_block, dispatched)
    for case in SOME
    if (case[0] in ("llava", "llava_next") if offload is dispatched else SPECS[case[0]].offloads)
    if case[0] != "llava" or case[1] in OF_LLAVA
]


@pytest.mark.parametrize(("name", "recipe", "offload"), OFFLOADED)
@pytest.mark.filterwarnings("ignore:The following device_map keys do not match")  # image_newline
@pytest.mark.parametrize("first", ["attach", "offload"])
def test_offloaded_by_accelerate(
    name: str, recipe: str, offload: Callable[[Any, Path], None], first: str, tmp_path: Path
) -> None:
    model = fresh(name)
    if first == "offload":
        offload(model, tmp_path)
    with method(name, recipe).attach(model):
        if first == "attach":
            offload(model, tmp_path)
        assert any(parameter.is_meta for parameter in model.parameters())
        same(run(name, model), expected(name, recipe), 1e-6)
    same(run(name, model), expected(name, None), 1e-6)


@pytest.mark.parametrize(
    ("name", "recipe"), [case for case in SOME if case[0] in dict(WAYS.values())]
)
def test_saved_is_the_bare_model(name: str, recipe: str, tmp_path: Path) -> None:
    model = fresh(name)
    model.save_pretrained(tmp_path / "bare")
    method(name, recipe).attach(model)
    run(name, model)
    model.save_pretrained(tmp_path / "attached")
    files = sorted(path.name for path in (tmp_path / "bare").iterdir())
    assert sorted(path.name for path in (tmp_path / "attached").iterdir()) == files
    for file in files:
        bare = (tmp_path / "bare" / file).read_bytes()
        assert (tmp_path / "attached" / file).read_bytes() == bare, file
    again = type(model).from_pretrained(tmp_path / "attached").eval()
    # Products of experts (Qwen3.5-MoE) round by where in memory the file's weights happen to lie.
    loaded = {key: value.clone() for key, value in again.state_dict().items()}
    again.load_state_dict(loaded, assign=True)
    same(run(name, again), expected(name, None))


def quantised(model: Any) -> None:
    """Linear layers of eight bits, in place, in the language model of LLaVA."""
    language = model.model.language_model
    torch.ao.quantization.quantize_dynamic(language, {nn.Linear}, torch.qint8, inplace=True)
    assert type(language.layers[0].mlp.up_proj) is not nn.Linear


@pytest.mark.parametrize(
    ("recipe", "first"),
    [
        *(("evoprune", "attach"), ("tome", "other")),  # the language model alone is quantised
        *((recipe, first) for recipe in ("divprune", "fastv") for first in ("attach", "other")),
    ],
)
@pytest.mark.skipif(
    not hasattr(torch.ao.quantization, "quantize_dynamic"), reason="this torch has no such function"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_linear_layers(recipe: str, first: str) -> None:
    model, twin = fresh("llava"), fresh("llava")
    quantised(twin)
    bare = run("llava", twin)
    if first == "other":
        quantised(model)
    attached = method("llava", recipe).attach(model)
    if first == "attach":
        quantised(model)
    reduced = run("llava", model)
    assert reduced[0].shape == expected("llava", recipe)[0].shape
    assert gap(reduced[0], bare[0]) > 1e-3
    attached.detach()
    same(run("llava", model), bare)
    method("llava", recipe).attach(twin)
    same(run("llava", twin), reduced)
