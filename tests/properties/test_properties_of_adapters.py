"""The adapter of every registered plugin keeps every property, on a tiny model that it knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import open_clip.transformer
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import tokenzoo
from tests.adapters.hf.models import tower
from tests.adapters.models import randomise
from tests.mutants import adapters as mutants
from tests.properties.instances import EXAMPLES
from tokenzoo import plugins
from tokenzoo.testing import PROPERTIES, Models, check_adapter
from tokenzoo.testing.checks import hold

ADAPTERS = [name for name, prop in PROPERTIES.items() if "adapter" in prop.binds]
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 2, "num_classes": 5}


def of_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: randomise(timm.create_model(name, **{**SMALL, "depth": 3, **options}))


def of_torchvision() -> nn.Module:
    sizes = {"image_size": 32, "patch_size": 8, "hidden_dim": 24, "mlp_dim": 48}
    model = torchvision.models.VisionTransformer(**sizes, num_layers=3, num_heads=2, num_classes=5)
    return randomise(model)


def of_open_clip() -> nn.Module:
    sizes = {"image_size": 32, "patch_size": 8, "width": 24, "heads": 2, "mlp_ratio": 2.0}
    tower = open_clip.transformer.VisionTransformer(
        **sizes, layers=3, output_dim=5, pool_type="avg"
    )
    return randomise(tower)


def of_transformers(name: str) -> Callable[[], nn.Module]:
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_attention_heads": 2}
    return lambda: tower(name, **sizes, num_hidden_layers=3)


# By the name of the plugin.
MODELS: Mapping[str, Mapping[str, Callable[[], nn.Module]]] = {
    "timm": {
        "ViT": of_timm("vit_tiny_patch16_224"),
        "ViT with a mean": of_timm("vit_medium_patch16_gap_240", class_token=False),
        "SigLIP": of_timm("vit_base_patch16_siglip_224"),
        "EVA-02": of_timm("eva02_tiny_patch14_224", embed_dim=48),
        "BEiT": of_timm("beit_base_patch16_224"),
    },
    "torchvision": {"ViT": of_torchvision},
    "open_clip": {"tower": of_open_clip},
    "transformers": {
        "CLIP": of_transformers("clip"),
        "SigLIP": of_transformers("siglip"),
        "DINOv3": of_transformers("dinov3_vit"),
    },
}
NAMED = {
    f"{plugin}, {name}": make for plugin, made in MODELS.items() for name, make in made.items()
}


def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_every_adapter_is_tried() -> None:
    assert sorted(MODELS) == tokenzoo.list_adapters()


@pytest.mark.parametrize("prop", ADAPTERS)
def test_the_honest_adapter_has_the_properties(prop: str) -> None:
    """On a model so small that a thousand passes cost little."""
    with plugins.registered(mutants, "mutants"):
        hold(
            PROPERTIES[prop],
            Models(mutants.tiny(mutants.Adapted), mutants.images()),
            examples=EXAMPLES,
        )
    assert PROPERTIES[prop].cases == "runs"


@pytest.mark.parametrize(
    ("name", "recipe"), [*((name, "evoprune") for name in NAMED), ("timm, ViT", "tome")]
)
def test_adapters_have_the_properties(name: str, recipe: str) -> None:
    check_adapter(NAMED[name], image=images(), recipe=recipe, examples=max(2, EXAMPLES // 50))
    with tokenzoo.build(recipe, keep=0.5).attach(NAMED[name]()) as attached:
        assert attached.plan().features < (attached.plan().tokens + 1) / 2 + 1


def test_a_model_serves_as_well_as_a_function_that_makes_one() -> None:
    model = of_timm("vit_tiny_patch16_224")()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_adapter(model, image=images(), examples=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
