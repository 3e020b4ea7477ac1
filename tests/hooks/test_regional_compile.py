"""Blocks that are compiled one by one are refused in the first pass; whole models and towers are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenzoo
from tests.adapters.hf import models as hf_models
from tests.adapters.hf.vlm import test_qwen_tower as test_hf_qwen_tower
from tests.adapters.models import VIT, gap, images
from tests.adapters.models import one_thread as one_thread
from tests.adapters.test_torchvision_vit import torchvision_vit
from tokenzoo.errors import AttachError

Made = tuple[Any, Any, Callable[[], Tensor]]
"""A model, the sequence or list of its blocks, and a call of the model."""


def of_timm() -> Made:
    model = VIT.build(depth=2, img_size=64)
    x = images(model)
    return model, model.blocks, lambda: model(x)


def of_timm_features() -> Made:
    model, blocks, _ = of_timm()
    x = images(model)
    return model, blocks, lambda: model.forward_features(x)


def of_torchvision() -> Made:
    model, x = torchvision_vit(depth=2), torch.randn(2, 3, 112, 112)
    return model, model.encoder.layers, lambda: model(x)


def siglip() -> Made:
    model = hf_models.tower("siglip", num_hidden_layers=2)
    inputs = hf_models.pixels(model)
    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 2)
    return model, layers, lambda: model(**inputs).last_hidden_state


def qwen() -> Made:
    model, grids = test_hf_qwen_tower.tower("qwen2_vl"), ((1, 4, 6), (1, 4, 4))
    x = test_hf_qwen_tower.pixels(model, grids)
    return model, model.blocks, lambda: test_hf_qwen_tower.run(model, x, grids)


def by_method(block: Any, blocks: Any) -> None:
    block.compile(backend="eager")


def by_wrapper(block: Any, blocks: Any) -> None:
    index = next(i for i, one in enumerate(blocks) if one is block)
    blocks[index] = torch.compile(block, backend="eager")


def attention_only(block: Any, blocks: Any) -> None:
    names = [name for name, _ in block.named_children() if "att" in name and "norm" not in name]
    block.get_submodule(names[0]).compile(backend="eager")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("make", "name", "how"),
    [
        (of_timm, "tome", by_method),
        (of_timm, "visionzip", by_wrapper),
        (of_timm, "uniform", attention_only),
        (of_timm_features, "tome", by_wrapper),
        (of_torchvision, "tome", by_method),
        (siglip, "tome", by_method),
        (siglip, "random", by_wrapper),
        (qwen, "tome", by_method),
    ],
)
@torch.no_grad()
def test_a_block_that_is_compiled_by_itself_is_refused(make: Any, name: str, how: Any) -> None:
    model, blocks, call = make()
    bare = call()
    attached = tokenzoo.build(name, keep=0.5).attach(model)
    how(list(blocks)[-1], blocks)
    with pytest.raises(AttachError, match=r"compiled by itself.*Compile the whole model"):
        call()
    attached.detach()
    with torch.compiler.set_stance("force_eager"):  # nothing of ours refuses any more
        assert gap(call(), bare) <= 1e-5


@torch.no_grad()
def test_what_is_around_the_blocks_may_be_compiled() -> None:
    model, blocks, call = of_timm()
    tokenzoo.build("tome", keep=8).attach(model)
    expected = call()
    blocks.compile(backend="eager", fullgraph=True)
    assert gap(call(), expected) <= 1e-5
