"""Ctrl-C anywhere: no tap works on after its attention, and attach and detach are done or undone."""

from __future__ import annotations

import gc
import weakref
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenzoo_adapters.hf import attention as hf_attention
from tokenzoo_adapters.timm import pool as timm_pool
from tokenzoo_adapters.timm import vit as timm_vit
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack as entered
from torch.utils import hooks

import tokenzoo
from tests.adapters.models import images, traces
from tests.compiling import clean_compiler as clean_compiler
from tests.hooks import interrupting
from tests.hooks.running import made, tiny
from tokenzoo.hooks import (
    attach,
    hook_order,
    installer,
    passes,
    reduction,
    snapshot,
    state,
    tap,
    undo,
)
from tokenzoo.hooks import handle as attached
from tokenzoo.hooks import site as splice
from tokenzoo.hooks import verify as proof
from tokenzoo.layouts import batched, packed

PASS = (splice, packed, batched, tap, reduction, passes, state)
OUTSIDE = (nn.modules.module, nn.modules.activation, F)


class Others:
    """Attentions that have nothing to do with an attached model, and what they gave before."""

    def __init__(self, lengths: set[int]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = [torch.randn(2, 2, n, 24, generator=generator) for n in lengths]
        self.sdpa = [F.scaled_dot_product_attention(x, x, x) for x in self.x]
        self.module = nn.MultiheadAttention(48, 2, batch_first=True).eval()
        self.rows = [x.transpose(1, 2).flatten(2) for x in self.x]
        self.known = [self.module(x, x, x)[0] for x in self.rows]

    def check(self) -> None:
        for x, wanted in zip(self.x, self.sdpa, strict=True):
            assert torch.equal(F.scaled_dot_product_attention(x, x, x), wanted)
        for x, wanted in zip(self.rows, self.known, strict=True):
            torch.testing.assert_close(self.module(x, x, x)[0], wanted)


@pytest.mark.parametrize(
    ("tower", "recipe", "modules", "event", "stride"),
    [
        ("timm ViT", "tome", PASS, "line", 7),
        ("timm ViT", "tome", (tap,), "opcode", 13),
        ("timm ViT", "pitome", (splice, *OUTSIDE), "line", 29),
        ("torchvision", "tome", (splice, tap, *OUTSIDE), "line", 29),
        ("open_clip", "pitome", (splice, tap), "line", 13),
        ("siglip", "tome", (splice, tap, hf_attention), "line", 11),
        ("qwen2_5_vl tower", "tome", PASS, "line", 53),
    ],
)
@torch.no_grad()
def test_after_an_interrupt_anywhere_in_a_pass(
    tower: str, recipe: str, modules: tuple[ModuleType, ...], event: str, stride: int
) -> None:
    model, call = made(tower)
    bare = call()
    handle = tokenzoo.build(recipe, keep=0.5).attach(model)
    expected = call()
    assert not torch.equal(expected, bare)
    prefix = handle.adapter.prefix
    lengths = {prefix + n for one in handle.passes for n in (one.tokens, *one.counts)}
    others = Others(lengths)
    places = range(0, interrupting.run(call, modules, event=event), stride)
    assert len(places) > 20
    left = 0
    for place in places:
        interrupting.run(call, modules, place, event)
        left += len(entered())
        others.check()
        if place % 5 == 0:
            assert torch.equal(call(), expected)
            assert entered() == []
    if modules == (tap,):
        assert left > 0  # otherwise nothing was tried
    handle.detach()
    assert entered() == []
    assert traces(model) == []
    assert torch.equal(call(), bare)


def interrupted_in_an_attention() -> tuple[Any, Tensor, Any]:
    """An attached model after a Ctrl-C that left its tap entered."""
    model = tiny()
    x = images(model)
    handle = tokenzoo.build("tome", keep=8).attach(model)

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    hook = model.blocks[1].attn.proj.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(x)
    hook.remove()
    assert len(entered()) == 1
    return model, x, handle


@pytest.mark.parametrize("ending", ["detach", "pass"])
def test_the_modes_of_others_stay(ending: str) -> None:
    model, x, handle = interrupted_in_an_attention()
    with torch.device("meta"):
        _ = handle.detach() if ending == "detach" else model(x)
        assert [type(mode).__name__ for mode in entered()] == ["DeviceContext"]
        assert torch.zeros(1).is_meta
    assert entered() == []
    model(x)


@pytest.mark.usefixtures("clean_compiler")
@torch.no_grad()
def test_what_is_compiled_after_an_interrupt_is_not_watched() -> None:
    _, _, handle = interrupted_in_an_attention()
    attend = torch.compile(F.scaled_dot_product_attention, backend="eager", fullgraph=True)
    x = torch.randn(2, 2, 13, 24)
    with torch._C.DisableTorchFunction():
        expected = F.scaled_dot_product_attention(x, x, x)
    assert torch.equal(attend(x, x, x), expected)
    handle.detach()


def test_a_tap_that_was_left_holds_no_attention() -> None:
    _, _, handle = interrupted_in_an_attention()
    (left,) = entered()
    query = weakref.ref(left.seen[0].query)
    gc.collect()
    x = torch.randn(2, 2, 13, 24)
    for _ in range(3):
        F.scaled_dot_product_attention(x, x, x)
    assert left.seen == []
    assert query() is None
    handle.detach()


ATTACH = (attach, attached, installer, undo, proof, splice, hook_order, tap, snapshot, hooks)


def found_in(model: nn.Module) -> Any:
    """Hooks and attributes of all modules, and the names of attention functions in configurations."""
    skipped = {"_parameters", "_buffers", "_modules", "config"}
    found: list[Any] = []
    for module in model.modules():
        values = {name: v for name, v in vars(module).items() if name not in skipped}
        found.append({k: dict(v) if isinstance(v, dict) else v for k, v in values.items()})
        found.append(getattr(getattr(module, "config", None), "_attn_implementation", None))
    return found


@pytest.mark.parametrize(
    ("tower", "modules", "event", "stride"),
    [
        ("timm ViT", (*ATTACH, timm_vit, timm_pool), "line", 61),
        ("timm ViT", (installer, undo, timm_vit, timm_pool), "opcode", 29),
        ("siglip", (*ATTACH, hf_attention), "line", 61),
        ("qwen2_5_vl tower", (splice, hf_attention), "line", 97),
    ],
)
@torch.no_grad()
def test_an_interrupted_attach_leaves_nothing(
    tower: str, modules: tuple[ModuleType, ...], event: str, stride: int
) -> None:
    model, call = made(tower)
    zoo = tokenzoo.build("tome", keep=0.5)
    bare, before = call(), found_in(model)
    zoo.attach(model).detach()
    assert found_in(model) == before
    done: list[Any] = []

    def begin() -> None:
        done.append(zoo.attach(model))

    count = interrupting.run(begin, modules, event=event)
    done.pop().detach()
    for place in (*range(7, count, stride), count - 1):
        interrupting.run(begin, modules, place, event)
        assert done == []
        assert found_in(model) == before
    assert torch.equal(call(), bare)


@pytest.mark.parametrize("tower", ["timm ViT", "torchvision", "siglip"])
@torch.no_grad()
def test_an_interrupted_detach_is_finished_by_the_next(tower: str) -> None:
    model, call = made(tower)
    zoo = tokenzoo.build("tome", keep=0.5)
    bare, before = call(), found_in(model)
    modules = (attached, installer, undo, splice, tap, hooks, timm_vit, timm_pool, hf_attention)
    count = interrupting.run(zoo.attach(model).detach, modules, event="line")
    for place in range(0, count, 1 + count // 25):
        handle = zoo.attach(model)
        with handle:
            interrupting.run(handle.detach, modules, place, "line")
        assert found_in(model) == before
    assert torch.equal(call(), bare)


def test_a_recipe_that_was_to_be_replaced_is_whole_after_an_interrupt() -> None:
    model, call = made("timm ViT")
    first = tokenzoo.build("tome", keep=0.5).attach(model)
    expected = call()
    other = tokenzoo.build("uniform", keep=0.3)

    def replace() -> None:
        other.attach(model, replace=True)

    count = interrupting.run(replace, (attach, installer, undo, hooks), event="line")
    first = tokenzoo.build("tome", keep=0.5).attach(model, replace=True)
    for place in range(0, count - 5, 1 + count // 25):
        interrupting.run(replace, (attach, installer, undo, hooks), place, "line")
        assert torch.equal(call(), expected)
    first.detach()
    assert traces(model) == []
