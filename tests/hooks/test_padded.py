"""Recipes whose counts come from the data, and those that make new tokens, on models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.adapters.hf.models import llava, pixels, tower
from tests.adapters.hf.vlm.qwen import qwen2_5_vl
from tests.adapters.models import GAP, SIGLIP, VIT, gap, images
from tokenzoo import Recipe, Step
from tokenzoo.errors import AttachError
from tokenzoo.matchers import Drop, Fuse, Sampled, SelectAssign, TopK
from tokenzoo.mergers import Fused, Identity
from tokenzoo.recipe import Stage
from tokenzoo.schedules import Geometric, Once
from tokenzoo.scorers import ReceivedAttention


def ragged(stage: Any = Stage.BLOCK, proportional: bool = True) -> Recipe:
    schedule = Geometric((0.25, 0.5, 0.75)) if stage == Stage.BLOCK else Once()
    match = SelectAssign(Sampled(ReceivedAttention()), Drop())
    step = Step(stage, schedule, match, Identity())
    return Recipe(step, keep=60, proportional_attention=proportional)


def alone(model: Any, x: Tensor, keeps: dict[int, Tensor]) -> Tensor:
    """One image through a bare timm ViT, where block i keeps `keeps[i]` of its tokens before its MLP."""
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    for index, block in enumerate(model.blocks):
        tokens = tokens + block.ls1(block.attn(block.norm1(tokens)))
        if index in keeps:
            tokens = tokens[:, keeps[index]]
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
    return model.forward_head(model.norm(tokens))


@pytest.mark.parametrize("case", [VIT, GAP, SIGLIP], ids=lambda case: case.name)
def test_each_image_gets_what_it_gets_without_padding(case: Any) -> None:
    model = case.build()
    x = images(model, batch=3)
    x[1] = x[1, :, :1, :1]  # of one colour: its tokens are alike but for their places
    plans: dict[int, Any] = {}

    def note(event: Any) -> None:
        plans[event.block] = event.plan

    with (
        tokenzoo.build(ragged()).attach(model, on_reduce=note) as attached,
        torch.inference_mode(),
    ):
        plans.clear()
        found = model(x)
        lengths = (attached.mass > 0).sum(-1)
    assert len(plans) == 3
    assert lengths.tolist() == list(plans.values())[-1].lengths.tolist()
    assert len(set(lengths.tolist())) > 1  # otherwise nothing is tested
    with torch.inference_mode():
        for image in range(3):
            keeps = {i: p.keep[image][: p.lengths[image]] for i, p in plans.items()}
            assert all((keep >= 0).all() for keep in keeps.values())
            assert gap(found[image : image + 1], alone(model, x[image : image + 1], keeps)) <= 1e-5


def test_the_recipe_ats_runs() -> None:
    model = VIT.build()
    x = images(model)
    with tokenzoo.build("ats", keep=40).attach(model) as attached, torch.inference_mode():
        model(x)
        assert attached.counts[-1] == 40
        real = (attached.mass > 0).sum(-1) - 1
    assert (real <= 40).all()
    assert (real < 40).any()


def fusing(stage: Any) -> Recipe:
    step = Step(stage, Once(), SelectAssign(TopK(ReceivedAttention()), Fuse()), Fused())
    return Recipe(step, keep=5)


def test_no_evidence_is_gathered_after_the_last_block() -> None:
    model = tower("dinov3_vit")
    given = pixels(model)
    with tokenzoo.build(fusing(Stage.FEATURES)).attach(model) as attached, torch.inference_mode():
        features = model(**given).last_hidden_state
        assert features.shape[1] == attached.adapter.prefix + 5


@pytest.mark.parametrize(
    ("make", "recipe", "says"),
    [
        (VIT.build, ragged(proportional=False), "proportional_attention=True"),
        (llava, ragged(Stage.FEATURES), "the prompts of"),
        (llava, ragged(Stage.PROJECTED), "the prompts of"),
        (lambda: qwen2_5_vl().model.visual, ragged(), "packed sequence"),
        # Attention that asks where a token is in the image.
        (lambda: tower("dinov3_vit"), fusing(Stage.BLOCK), "makes new tokens"),
        (lambda: qwen2_5_vl().model.visual, fusing(Stage.FEATURES), "makes new tokens"),
    ],
)
def test_where_it_cannot_be_is_an_error(make: Any, recipe: Recipe, says: str) -> None:
    model = make()
    with pytest.raises(AttachError, match=says):
        tokenzoo.build(recipe).attach(model)
    assert not hasattr(model, "_tokenzoo_attached")
