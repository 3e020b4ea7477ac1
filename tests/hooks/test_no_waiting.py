"""An attached pass never waits for the device, and what a whole model does on the host is not per block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm import qwen as hf_qwen
from tests.adapters.models import DINOV3, VIT, images
from tests.adapters.models import one_thread as one_thread
from tests.watching import Watch
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import AttachError, MissingEvidenceError
from tokenzoo.evidence import Evidence
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.parts import Scorer
from tokenzoo.schedules import Skip


def llava(depth: int) -> tuple[Any, dict[str, Any]]:
    model = hf.llava(vision={"num_hidden_layers": depth + 1})
    prompts = ["see <image> and say", "the <image>"]
    return model, dict(hf.inputs(model, prompts, [[photo] for photo in hf.photos()[:2]]))


def qwen2(depth: int) -> tuple[Any, dict[str, Any]]:
    model = hf_qwen.qwen2_vl(vision={"depth": depth})
    return model, dict(hf_qwen.inputs(model, "see <image> and <image>", hf.photos()[1:3]))


def qwen2_5(depth: int) -> tuple[Any, dict[str, Any]]:
    model = hf_qwen.qwen2_5_vl(vision={"depth": depth, "fullatt_block_indexes": [depth - 1]})
    return model, dict(hf_qwen.inputs(model, "see <image> and <image>", hf.photos()[1:3]))


def clip(depth: int) -> tuple[Any, dict[str, Any]]:
    model = hf.tower("clip", num_hidden_layers=depth)
    return model, hf.pixels(model)


def vit(depth: int) -> tuple[Any, Tensor]:
    model = VIT.build(depth=depth, img_size=96)
    return model, images(model)


def rotary(depth: int) -> tuple[Any, Tensor]:
    model = DINOV3.build(depth=depth, img_size=96)
    return model, images(model)


TOWERS: dict[str, Callable[[int], tuple[Any, Any]]] = {"ViT": vit, "rotary": rotary, "CLIP": clip}
WHOLE: dict[str, Callable[[int], tuple[Any, Any]]] = {
    "LLaVA": llava,
    "Qwen2-VL": qwen2,
    "Qwen2.5-VL": qwen2_5,
}
RECIPES = pytest.mark.parametrize("recipe", tokenzoo.list_recipes())


@cache
def made(name: str, depth: int) -> tuple[Any, Any, Counter[str]]:
    """A model, its inputs, and where it waits without a recipe; every recipe leaves it bare."""
    model, given = {**TOWERS, **WHOLE}[name](depth)
    return model, given, watched(model, given).waited


def watched(model: Any, given: Any) -> Watch:
    """A pass, after one in which what is made once was made."""
    watch = Watch()
    with torch.no_grad():
        for watching in (nullcontext(), watch):
            with watching:
                model(given) if isinstance(given, Tensor) else model(**given)
    return watch


def attached(zoo: tokenzoo.Method, model: Any, given: Any) -> Watch | None:
    """An attached pass; None: the recipe has no place on this model."""
    try:
        with zoo.attach(model):
            return watched(model, given)
    except (AttachError, MissingEvidenceError):
        return None


@RECIPES
@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_never_waits(name: str, recipe: str) -> None:
    model, given, bare = made(name, 4)
    found = attached(tokenzoo.build(recipe, keep=16), model, given)
    if found is None:
        pytest.skip("has no place on a tower")
    assert found.ours == []
    assert found.waited.total() == bare.total()


@RECIPES
@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_model_waits_no_more_for_more_blocks(name: str, recipe: str) -> None:
    zoo = tokenzoo.build(recipe, keep=0.5)
    more: list[Counter[str]] = []
    for depth in (3, 5):
        model, given, bare = made(name, depth)
        found = attached(zoo, model, given)
        if found is None:
            pytest.skip(f"has no place on {name}")
        more.append(found.waited - bare)
    grown = more[1] - more[0]
    # Which windows have groups left: the bare tower reads their lengths three times a block.
    windows = [
        where for where in grown if where.startswith("unique_consecutive at tokenzoo_adapters.")
    ]
    assert sum(grown.pop(where) for where in windows) <= (4 if name == "Qwen2.5-VL" else 0)
    assert not grown


@dataclass(frozen=True)
class Waits(Scorer):
    """A scorer that takes its mean out of the tensors and back in."""

    def score(self, evidence: Evidence) -> Tensor:
        return evidence.x[..., 0] - evidence.x.mean().item()


def test_a_part_that_waits_is_seen() -> None:
    step = Step(Stage.BLOCK, Skip(0), SelectAssign(TopK(Waits()), Drop()), Identity())
    model, given = vit(4)
    found = attached(tokenzoo.build(Recipe(step, keep=16)), model, given)
    assert found is not None
    assert found.waited.total() == 2  # the blocks 0 and 2
    assert all("_local_scalar_dense" in where for where in found.waited)
