"""A block's queries, keys and values are gone before its second branch runs, as in the bare model.

Held until the block ends they would add three tensors of the width of the model to its peak, right where
that peak is: next to the four times wider hidden layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import tokenzoo
from tests.adapters.hf import models as hf_models
from tests.adapters.hf.vlm import qwen
from tests.adapters.models import SIGLIP, VIT, images

Run = tuple[Any, Callable[[], Any]]
GRIDS = ((1, 6, 10), (1, 4, 14))


def timm(case: Any) -> Run:
    model = case.build(depth=4, img_size=96)
    return model, partial(model, images(model))


def clip() -> Run:
    model = hf_models.tower("clip")
    return model, partial(model, **hf_models.pixels(model))


def qwen_tower() -> Run:
    model = qwen.qwen2_5_vl().model.visual
    x = qwen.pixels(model, GRIDS)["hidden_states"]
    return model, partial(model, x, grid_thw=torch.tensor(GRIDS))


MODELS: dict[str, tuple[Callable[[], Run], str]] = {
    "timm vit": (partial(timm, VIT), "mlp.fc1"),
    "timm siglip": (partial(timm, SIGLIP), "mlp.fc1"),
    "clip": (clip, "mlp.fc1"),
    "qwen2.5-vl": (qwen_tower, "mlp.gate_proj"),
}


class Attentions(TorchDispatchMode):
    """Remember what goes into every fused attention, and hold none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[StorageWeakRef] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in func.name():
            self.given += [StorageWeakRef(x.untyped_storage()) for x in args[:3]]
        return func(*args, **(kwargs or {}))


def held(model: nn.Module, run: Callable[[], Any], then: str) -> list[bool]:
    """For each block, whether what its attention was given is in memory when its second branch begins."""
    found: list[bool] = []
    watch = Attentions()

    def look(module: nn.Module, args: Any) -> None:
        assert watch.given
        found.append(not all(ref.expired() for ref in watch.given))
        watch.given.clear()

    handles = [
        module.register_forward_pre_hook(look)
        for name, module in model.named_modules()
        if name.endswith(then) and "pool" not in name  # of the blocks alone
    ]
    with torch.no_grad(), watch:
        run()
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("recipe", ["evoprune", "tome", "random"])
@pytest.mark.parametrize("name", MODELS)
def test_the_attention_is_not_held(name: str, recipe: str) -> None:
    make, then = MODELS[name]
    model, run = make()
    bare = held(model, run, then)
    assert bare
    assert not any(bare)
    with tokenzoo.build(recipe, keep=0.5).attach(model) as attached:
        assert held(model, run, then) == bare
        assert attached.passes


def test_this_can_fail() -> None:
    model, run = timm(VIT)
    kept: list[torch.Tensor] = []
    for block in model.blocks:
        block.attn.qkv.register_forward_hook(lambda m, a, y: kept.append(y))
    assert all(held(model, run, "mlp.fc1"))
