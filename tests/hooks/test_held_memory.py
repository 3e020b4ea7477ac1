"""A block's queries, keys and values are gone before its second branch runs, as in the bare model.

Held until the block ends they would add three tensors of the width of the model to its peak, right where
that peak is: next to the four times wider hidden layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import tokenzoo
from tests.hooks.running import made

MODELS = {
    **dict.fromkeys(("timm ViT", "timm SigLIP", "clip"), "mlp.fc1"),
    "qwen2_5_vl tower": "mlp.gate_proj",
}


class Attentions(TorchDispatchMode):
    """Remember what goes into every attention, fused or in tiles, and hold none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[StorageWeakRef] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in func.name() for name in ("scaled_dot_product", "baddbmm", "::bmm")):
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
    model, run = made(name)
    then = MODELS[name]
    bare = held(model, run, then)
    assert bare
    assert not any(bare)
    with tokenzoo.build(recipe, keep=0.5).attach(model) as attached:
        assert held(model, run, then) == bare
        assert attached.passes


def test_this_can_fail() -> None:
    model, run = made("timm ViT")
    kept: list[torch.Tensor] = []
    for block in model.blocks:
        block.attn.qkv.register_forward_hook(lambda m, a, y: kept.append(y))
    assert all(held(model, run, "mlp.fc1"))
