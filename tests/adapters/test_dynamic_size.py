"""A model that takes images of several sizes is judged by the size of each pass, not the configured one."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.models import one_thread as one_thread
from tokenzoo.errors import BudgetError

SIDE, PATCH = 28 * 7, 7  # 784 tokens by the configuration; 64 where images are 56 pixels wide
SMALL = torch.ones(2, 3, 56, 56)
ASKED = {"interpolate_pos_encoding": True}
DYNAMIC: dict[str, dict[str, Any]] = {  # what a call must say so that it takes another size
    "dinov2": {},
    "dinov2_with_registers": {},
    "dinov3_vit": {},
    "clip": ASKED,
    "siglip": ASKED,
    "vit": ASKED,
    "vit_tiny_patch16_224": {},
    "eva02_tiny_patch14_224": {},
    "vit_small_patch14_dinov2": {},
}


def made(name: str, **options: Any) -> nn.Module:
    if name in hf.TOWERS:
        return hf.tower(name, image_size=SIDE, patch_size=PATCH)
    sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 48, "depth": 5, "num_heads": 4}
    return timm.create_model(name, **sizes, **options).eval()


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_budget_is_judged_by_the_size_of_the_pass(name: str) -> None:
    model = made(name) if name in hf.TOWERS else made(name, dynamic_img_size=True)
    zoo = tokenzoo.build("tome", keep=4)
    with pytest.warns(UserWarning, match=r"of 784 tokens .*fewest possible is 25.* several sizes"):
        attached = zoo.attach(model)
    assert "of 784 tokens is out of reach" in attached.summary()
    with torch.no_grad():
        model(SMALL, **DYNAMIC[name])
        assert attached.counts[-1] == attached.plan(64).features == 4
        with pytest.raises(BudgetError, match="of 784 tokens"):
            model(torch.ones(1, 3, SIDE, SIDE), **DYNAMIC[name])


@pytest.mark.parametrize("name", ["dinov2", "siglip", "vit_tiny_patch16_224"])
def test_a_smaller_image_is_judged_by_the_image_of_the_pass(name: str) -> None:
    model = made(name) if name in hf.TOWERS else made(name, dynamic_img_size=True)
    with pytest.warns(UserWarning, match="28 x 28 .* to 706: .* several sizes") as caught:
        attached = tokenzoo.build("downsample", keep=0.9).attach(model)  # 706 is 2 x 353
    assert caught[0].filename == __file__
    with torch.no_grad():
        model(torch.ones(1, 3, 70, 70), **DYNAMIC[name])
        assert attached.counts[-1] == 9 * 10
        with pytest.raises(BudgetError, match="28 x 28 patches"):
            model(torch.ones(1, 3, SIDE, SIDE), **DYNAMIC[name])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2", "llava"])
def test_a_model_of_one_size_is_judged_when_it_is_attached_to(name: str) -> None:
    model = hf.llava() if name == "llava" else made(name)
    with pytest.raises(BudgetError, match="is out of reach"):
        tokenzoo.build("tome", keep=1).attach(model)
    if name != "llava":
        with pytest.raises(BudgetError, match="28 x 28 patches cannot be resized to 706"):
            tokenzoo.build("downsample", keep=0.9).attach(model)
