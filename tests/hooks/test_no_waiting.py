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
from tests.hooks.running import made
from tests.watching import Watch
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import AttachError, MissingEvidenceError
from tokenzoo.evidence import Evidence
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.parts import Scorer
from tokenzoo.schedules import Skip

TOWERS = ("timm ViT", "timm DINOv3", "clip")
WHOLE = ("llava", "qwen2_5_vl")
RECIPES = pytest.mark.parametrize("recipe", tokenzoo.list_recipes())


Call = Callable[[], Any]


@cache
def prepared(name: str, depth: int) -> tuple[Any, Call, Counter[str]]:
    """A model, a call of it, and where it waits without a recipe; every recipe leaves it bare."""
    model, call = made(name, depth)
    if name == "qwen2_5_vl":
        model.model.visual.fullatt_block_indexes[:] = [depth - 1]
    return model, call, watched(call).waited


def watched(call: Call) -> Watch:
    """A pass, after one in which what is made once was made."""
    watch = Watch()
    with torch.no_grad():
        for watching in (nullcontext(), watch):
            with watching:
                call()
    return watch


def attached(zoo: tokenzoo.Method, model: Any, call: Call) -> Watch | None:
    """An attached pass; None: the recipe has no place on this model."""
    try:
        with zoo.attach(model):
            return watched(call)
    except (AttachError, MissingEvidenceError):
        return None


@RECIPES
@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_never_waits(name: str, recipe: str) -> None:
    model, call, bare = prepared(name, 4)
    found = attached(tokenzoo.build(recipe, keep=16), model, call)
    if found is None:
        pytest.skip("has no place on a tower")
    assert found.ours == []
    assert found.waited.total() == bare.total()


@RECIPES
@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_model_waits_no_more_for_more_blocks(name: str, recipe: str) -> None:
    zoo = tokenzoo.build(recipe, keep=0.5)
    more: list[Counter[str]] = []
    for depth in (4, 6):
        model, call, bare = prepared(name, depth)
        found = attached(zoo, model, call)
        if found is None:
            pytest.skip(f"has no place on {name}")
        more.append(found.waited - bare)
    grown = more[1] - more[0]
    # Which windows have groups left: the bare tower reads their lengths three times a block.
    windows = [
        where for where in grown if where.startswith("unique_consecutive at tokenzoo_adapters.")
    ]
    assert sum(grown.pop(where) for where in windows) <= (4 if name == "qwen2_5_vl" else 0)
    assert not grown


@dataclass(frozen=True)
class Waits(Scorer):
    """A scorer that takes its mean out of the tensors and back in."""

    def score(self, evidence: Evidence) -> Tensor:
        return evidence.x[..., 0] - evidence.x.mean().item()


def test_a_part_that_waits_is_seen() -> None:
    step = Step(Stage.BLOCK, Skip(0), SelectAssign(TopK(Waits()), Drop()), Identity())
    model, call, _ = prepared("timm ViT", 4)
    found = attached(tokenzoo.build(Recipe(step, keep=16)), model, call)
    assert found is not None
    assert found.waited.total() == 2  # the blocks 0 and 2
    assert all("_local_scalar_dense" in where for where in found.waited)
