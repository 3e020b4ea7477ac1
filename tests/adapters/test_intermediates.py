"""Features of blocks in between: restored, or an error; and passes that stop there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch

import tokenzoo
from tests.adapters.hf.models import pixels, tower
from tests.adapters.models import DINO_REG, DINOV3, VIT, images, randomise, small
from tests.adapters.test_torchvision_vit import open_clip_vit
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import AttachError
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import FeatureNorm

Maps = Callable[[Any, Any], list[Any]]


def getter(name: str) -> Any:
    sizes: dict[str, Any] = {"depth": 4, "embed_dim": 48, "num_heads": 4, "img_size": 112}
    made = timm.create_model(name, features_only=True, out_indices=(0, 2), **sizes)
    return randomise(made).eval()


def itself(model: Any) -> Any:
    return model


# What attach is given, what is called, and the features of the last block asked for.
WAYS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Maps]] = {
    "open_clip, maps": (
        lambda: open_clip_vit(4),
        itself,
        lambda model, x: model.forward_intermediates(x, indices=[3])["image_intermediates"],
    ),
    "open_clip, only these": (
        lambda: open_clip_vit(4, pool_type="avg"),
        itself,
        lambda model, x: model.forward_intermediates(
            x, indices=[2], stop_early=True, intermediates_only=True, normalize_intermediates=True
        )["image_intermediates"],
    ),
    "timm, layers": (
        lambda: VIT.build(depth=4, img_size=112),
        itself,
        lambda model, x: model.get_intermediate_layers(x, n=1),
    ),
    "timm, layers with registers": (
        lambda: DINO_REG.build(depth=4, img_size=98),
        itself,
        lambda model, x: [
            y for y, _ in model.get_intermediate_layers(x, n=[3], return_prefix_tokens=True)
        ],
    ),
    "timm, rotary": (
        lambda: DINOV3.build(depth=4, img_size=112),
        itself,
        lambda model, x: model.forward_intermediates(x, indices=[3], intermediates_only=True),
    ),
    **{
        f"features_only of {name}": (
            lambda name=name: getter(name),
            lambda net: net.model,
            lambda net, x: net(x),
        )
        for name in ("vit_tiny_patch16_224", "eva02_tiny_patch14_224", "beit_base_patch16_224")
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_features_in_between_are_whole_or_an_error(way: str) -> None:
    make, inside, maps = WAYS[way]
    model = make()
    x = images(inside(model))
    with torch.no_grad():
        bare = maps(model, x)
        for recipe in ("tome", "random"):
            zoo = tokenzoo.build(recipe, keep=20)
            with zoo.attach(inside(model)), pytest.raises(AttachError, match="restore=True"):
                maps(model, x)
            with zoo.attach(inside(model), restore=True):
                restored = maps(model, x)
            assert [y.shape for y in restored] == [y.shape for y in bare]
            assert not torch.equal(restored[-1], bare[-1])
        assert all(torch.equal(y, z) for y, z in zip(maps(model, x), bare, strict=True))


def call(model: Any) -> Any:
    return model(**pixels(model)) if hasattr(model, "config") else model(images(model))


def stop(model: Any) -> None:
    options = {"indices": [1], "stop_early": True, "intermediates_only": True, "output_fmt": "NLC"}
    model.forward_intermediates(images(model), **options)


def prune(model: Any) -> None:
    model.prune_intermediate_layers([1])
    stop(model)


def cut(blocks: str, run: Callable[[Any], Any], model: Any) -> None:
    del model.get_submodule(blocks)[2:]
    run(model)


SHORT: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "timm, stops": (lambda: VIT.build(depth=4, img_size=112), stop),
    "timm, pruned": (lambda: VIT.build(depth=4, img_size=112), prune),
    "timm, cut": (lambda: DINOV3.build(depth=4, img_size=112), partial(cut, "blocks", stop)),
    "open_clip, stops": (lambda: open_clip_vit(4), stop),
    "open_clip, pruned": (lambda: open_clip_vit(4), prune),
    "dinov2": (lambda: tower("dinov2"), partial(cut, "encoder.layer", call)),
    "siglip": (
        lambda: tower("siglip", vision_use_head=False),
        partial(cut, "encoder.layers", call),
    ),
}


AT_THE_END = Step(Stage.FEATURES, Once(), SelectAssign(TopK(FeatureNorm()), Drop()), Identity())
RECIPES = {"blocks": "tome", "features": Recipe(AT_THE_END)}


@pytest.mark.parametrize("stage", RECIPES)
@pytest.mark.parametrize("way", SHORT)
def test_a_pass_that_stops_early_shows_no_counts_of_another(way: str, stage: str) -> None:
    make, run = SHORT[way]
    model = make()
    attached = tokenzoo.build(RECIPES[stage], keep=20).attach(model, trace=True)
    with pytest.raises(AttachError, match="has not run"):
        _ = attached.counts
    with torch.no_grad():
        call(model)
        assert attached.features == 20
        run(model)
    for name in ("counts", "features", "mass", "record", "passes"):
        with pytest.raises(AttachError, match=r"did not reach the last block.*attach again"):
            getattr(attached, name)


def test_a_model_whose_blocks_were_cut_does_not_pool() -> None:
    for model, blocks in (
        (VIT.build(depth=4), "blocks"),
        (open_clip_vit(4), "transformer.resblocks"),
        (tower("siglip"), "encoder.layers"),
    ):
        tokenzoo.build("tome", keep=20).attach(model)
        with pytest.raises(AttachError, match=r"2 of \d blocks ran before the pooling"):
            cut(blocks, call, model)


def test_checkpointing_runs_the_first_block_again_and_the_counts_stay() -> None:
    model = small("vit_tiny_patch16_224", depth=4).train()
    model.set_grad_checkpointing()
    attached = tokenzoo.build("tome", keep=20).attach(model)
    model(images(model)).sum().backward()
    assert attached.counts == attached.plan().blocks
