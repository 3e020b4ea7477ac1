"""Compiled and exported, what is attached says what it says eagerly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm import qwen
from tests.conformance.specs import SPECS, Inputs, fresh, run, same
from tokenzoo.errors import AttachError


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.compiles])
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
def test_compiled_and_exported(name: str) -> None:
    """Zero graph breaks: fullgraph=True would raise at the first.

    EvoPrune watches the attention of the first block and biases that of the second. In eager mode torch
    has a faster path of its own for torchvision's blocks: 1e-4, not 1e-5.
    """
    model, spec = fresh(name, 2), SPECS[name]
    tokenzoo.build("evoprune", keep=0.6, start=0).attach(model)
    given = spec.give(model)
    other = {
        key: value.flip(0) if value.is_floating_point() else value for key, value in given.items()
    }
    wanted = [run(name, model, one) for one in (given, other)]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        exported = torch.export.export(model, (), dict(given)).module()
    for one, out in zip((given, other), wanted, strict=True):
        for made in (compiled, exported):
            same(run(name, made, one), out, 1e-4)


def llava(vision: int, text: int) -> tuple[Any, Inputs]:
    """With so many layers in its two parts; all but the last of the tower are read."""
    model = hf.llava(vision={"num_hidden_layers": vision}, text={"num_hidden_layers": text})
    return model, SPECS["llava"].give(model)


def qwen_tower() -> tuple[Any, Inputs]:
    """A block with windows, and one without."""
    vision = {"depth": 2, "fullatt_block_indexes": [1]}
    model = qwen.qwen2_5_vl(vision=vision).model.visual
    return model, qwen.pixels(model, ((1, 6, 10),))


PARTS = {
    "a tower in place": (lambda: llava(2, 1), "model.vision_tower", "tome", {"keep": 32}),
    "a wrapped LLM": (lambda: llava(2, 3), "model.language_model", "fastv", {"keep": 0.25}),
    "the whole": (lambda: llava(2, 1), "", "divprune", {"keep": 16}),
    "a packed tower": (qwen_tower, "", "evoprune", {"keep": 0.6, "start": 0}),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_parts_are_compiled_with_the_graph_breaks_of_the_bare_model(part: str) -> None:
    """LLaVA's tower has none. All but the LLM are compiled in place."""
    make, path, name, options = PARTS[part]
    model, given = make()

    def said(generate: bool = path == "model.language_model") -> list[Tensor]:
        """What is read; with a second token, by the cache, if the LLM is compiled."""
        with torch.no_grad():
            out = model(**given)
            more: dict[str, Any] = {"output_logits": True, "return_dict_in_generate": True}
            logits = model.generate(**given, max_new_tokens=2, **more).logits if generate else ()
        return [out.pooler_output if make is qwen_tower else out.logits, *logits]

    bare = said()  # transformers puts hooks of its own on a model at its first run, under a lock
    with tokenzoo.build(name, **options).attach(model):
        wanted = said()
        module = model.get_submodule(path)
        if path == "model.language_model":
            model.model.language_model = torch.compile(module, backend="eager")
        else:
            module.compile(backend="eager", fullgraph=path == "model.vision_tower")
        same(said(), wanted, 1e-4)
        assert counters["stats"]["unique_graphs"] > 0
        with pytest.raises(AttachError, match="attach first, then compile"):
            tokenzoo.build(name, **options).attach(model, replace=True)
    if path:
        same(said(generate=False), bare[:1], 1e-4)
