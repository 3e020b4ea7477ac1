"""Images of other sizes than the configured one, and images that are made smaller."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import tokenzoo
from tests.adapters import models as of_timm
from tests.adapters.hf import models as hf
from tests.adapters.models import gap, images, run, traces
from tokenzoo.errors import AttachError, BudgetError

SIDE, PATCH = 28 * 7, 7  # 784 tokens by the configuration; 64 where images are 56 pixels wide
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
EACH = pytest.mark.parametrize("name", DYNAMIC)


def made(name: str, **options: Any) -> Any:
    if name in hf.TOWERS:
        return hf.tower(name, image_size=SIDE, patch_size=PATCH)
    sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 48, "depth": 5, "num_heads": 4}
    return timm.create_model(name, **sizes, **options).eval()


def dynamic(name: str) -> Any:
    return made(name) if name in hf.TOWERS else made(name, dynamic_img_size=True)


def said(model: Any, x: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        out = model(x, **options)
    return getattr(out, "last_hidden_state", out)


@EACH
def test_a_budget_is_judged_by_the_size_of_the_pass(name: str) -> None:
    model = dynamic(name)
    zoo = tokenzoo.build("tome", keep=4)
    with pytest.warns(UserWarning, match=r"784 tokens .*fewest possible is 25.* several sizes"):
        attached = zoo.attach(model)
    assert "of 784 tokens is out of reach" in attached.summary()
    said(model, torch.ones(2, 3, 56, 56), **DYNAMIC[name])
    assert attached.counts[-1] == attached.plan(64).features == 4
    with pytest.raises(BudgetError, match="784"):
        said(model, torch.ones(1, 3, SIDE, SIDE))


@pytest.mark.parametrize("name", ["dinov2", "siglip", "vit_tiny_patch16_224"])
def test_a_smaller_image_is_judged_by_the_image_of_the_pass(name: str) -> None:
    model = dynamic(name)
    with pytest.warns(UserWarning, match="28 x 28 .* to 706: .* several sizes") as caught:
        attached = tokenzoo.build("downsample", keep=0.9).attach(model)  # 706 is 2 x 353
    assert caught[0].filename == __file__
    said(model, torch.ones(1, 3, 70, 70), **DYNAMIC[name])
    assert attached.counts[-1] == 9 * 10
    with pytest.raises(BudgetError, match="28 x 28 patches"):
        said(model, torch.ones(1, 3, SIDE, SIDE), **DYNAMIC[name])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2", "llava"])
def test_a_model_of_one_size_is_judged_when_it_is_attached_to(name: str) -> None:
    model = hf.llava() if name == "llava" else made(name)
    with pytest.raises(BudgetError, match="is out of reach"):
        tokenzoo.build("tome", keep=1).attach(model)


@EACH
def test_an_image_of_another_size_has_the_grid_and_the_plan_of_its_own(name: str) -> None:
    model, options = dynamic(name), DYNAMIC[name]
    x = torch.randn(2, 3, 84, 42)
    bare = said(model, x, **options)
    with tokenzoo.build("pool", keep=0.25).attach(model) as attached:
        said(model, x, **options)
        assert attached.counts == attached.plan(72).blocks
        assert attached.counts[-1] == 18
        assert attached.adapter.grid(72) == (12, 6)
        said(model, torch.ones(1, 3, SIDE, SIDE))
        assert attached.counts == attached.plan().blocks
    with tokenzoo.build("evoprune", keep=1.0).attach(model):
        assert gap(said(model, x, **options), bare) <= 1e-5
    with tokenzoo.build("tome", keep=100).attach(model) as attached:  # it is left whole
        assert gap(said(model, x, **options), bare) <= 1e-5
        assert attached.counts == (72,) * 5


def test_a_model_without_an_image_size_asks_for_it() -> None:
    model = of_timm.VIT.build(dynamic_img_size=True)
    model.patch_embed.img_size = model.patch_embed.grid_size = None
    attached = tokenzoo.build("evoprune").attach(model)
    with pytest.raises(AttachError, match=r"plan\(196\)"):
        attached.plan()
    assert attached.plan(100).features == 25
    for recipe, named in (("uniform", "grid"), ("downsample", "image size")):
        with pytest.raises(tokenzoo.TokenzooError, match=named):
            tokenzoo.build(recipe).attach(model, replace=True)


SMALLER: dict[str, tuple[Any, int | float, tuple[int, int]]] = {
    "ViT, a share": (of_timm.VIT, 0.25, (7, 7)),
    "ViT": (of_timm.VIT, 100, (10, 10)),
    "ViT, whole": (of_timm.VIT, 1.0, (14, 14)),
    "a mean": (of_timm.GAP, 144, (12, 12)),
    "DeiT-III": (of_timm.DEIT3, 0.25, (7, 7)),
    "distilled": (of_timm.DISTILLED, 0.25, (7, 7)),
    "registers": (of_timm.DINO_REG, 64, (8, 8)),
    "no square": (of_timm.CLIP, 42, (6, 7)),
    "SigLIP": (of_timm.SIGLIP, 0.25, (7, 7)),
    "registers and a mean": (of_timm.REG_GAP, 64, (8, 8)),
    "DINOv3": (of_timm.DINOV3, 0.25, (8, 8)),
    **{name: (name, 16, (4, 4)) for name in hf.TOWERS if name not in ("siglip2", "aimv2")},
}


@pytest.mark.parametrize("name", SMALLER)
def test_downsample_is_the_model_of_a_smaller_image(name: str) -> None:
    """Its positions are interpolated as the library does it for images of any size."""
    case, keep, grid = SMALLER[name]
    options: dict[str, Any] = {}
    if name in hf.TOWERS:
        model = twin = hf.tower(name)
        x, patch, options = hf.pixels(model)["pixel_values"], (hf.PATCH,) * 2, DYNAMIC.get(name, {})
    else:
        model, twin = case.build(), case.build(dynamic_img_size=True)
        x, patch = images(model), model.patch_embed.patch_size
    embed = getattr(model, "patch_embed", model.get_submodule(""))
    before = {key: value for key, value in vars(embed).items() if key[0] != "_"}
    bare = said(model, x)
    size = (grid[0] * patch[0], grid[1] * patch[1])
    small = F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)
    expected = said(twin, small, **options)
    with tokenzoo.build("downsample", keep=keep).attach(model) as attached:
        assert gap(said(model, x), expected) <= 1e-5
        n = grid[0] * grid[1]
        assert attached.counts == attached.plan().blocks == (n,) * len(attached.counts)
        assert attached.plan().entering == n
    assert keep == 1.0 or bare.shape != expected.shape or gap(expected, bare) > 1e-3
    assert torch.equal(said(model, x), bare)
    assert traces(model) == []
    assert {key: value for key, value in vars(embed).items() if key[0] != "_"} == before
    assert name in hf.TOWERS or model.dynamic_img_size == (case is of_timm.DINOV3)


@pytest.mark.parametrize(
    ("case", "keep", "nearest"),
    [
        (of_timm.VIT, 97, "96 and 98"),
        (of_timm.VIT, 13, "12 and 15"),
        (of_timm.CLIP, 43, "42 and 45"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_downsample_to_no_rectangle_names_the_nearest(case: Any, keep: int, nearest: str) -> None:
    model = case.build()
    x = images(model)
    bare = run(model, x)
    with pytest.raises(BudgetError, match=f"{keep}.*the nearest counts are {nearest}"):
        tokenzoo.build("downsample", keep=keep).attach(model)
    assert traces(model) == []
    assert model.patch_embed.strict_img_size
    assert torch.equal(run(model, x), bare)
