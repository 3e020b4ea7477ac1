"""Floors, by hand: the operations of towers and of language models, bare and planned."""

from __future__ import annotations

import pytest

import tokenzoo
from tokenzoo.tools.benchmark import Sizes, attaching, floors, load
from tokenzoo.tools.benchmark.candidates import copy_of

WORDS = 32


def attached(work, recipe, keep):
    return attaching(tokenzoo.build(recipe, keep=keep))(copy_of(work.model), bool)


def layer(tokens: int) -> int:
    """A layer of the tiny language model: width 64, MLP 96, 4 heads, 2 of keys."""
    matrices = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96
    return 2 * tokens * matrices + 4 * tokens * tokens * 64


def test_an_image_encoder():
    work = load("clip-l-336", Sizes(tiny=True, batch=3))
    bare = floors.operations(work, None)
    block = 8 * 82 * 64**2 + 4 * 82**2 * 64 + 4 * 82 * 64 * 96  # CLS among them
    assert bare == {"encoder": 3 * 6 * block}
    on = attached(work, "evoprune", 20)
    own = floors.operations(work, on)
    assert own["encoder"] / bare["encoder"] == pytest.approx(on.plan().flops)
    assert floors.after_tower(work, on) == (20,)


def test_a_prompt_with_a_video():
    work = load("llava-video-0.5b", Sizes(tiny=True, batch=2, frames=2))
    bare, on = floors.operations(work, None), attached(work, "evoprune", 20)
    own = floors.operations(work, on)
    assert floors.prompts(work, None) == (WORDS + 2 * 16 + 1,) * 3
    assert floors.prompts(work, on) == (WORDS + 2 * 20 + 1,) * 3
    assert bare["prefill"] == 2 * 3 * layer(WORDS + 33)
    assert own["prefill"] == 2 * 3 * layer(WORDS + 41)
    assert own["encoder"] == pytest.approx(bare["encoder"] * on.plan().flops)
    head = 2 * 64 * 151680
    assert own["first_token"] == own["encoder"] + own["prefill"] + 2 * head


def test_a_recipe_in_the_language_model():
    work = load("llava-onevision-0.5b", Sizes(tiny=True, frames=2))
    on = attached(work, "fastv", 0.25)
    # 81 patches, pooled to 25: all in two layers of three, and a quarter (6 of 25 a frame) in the third.
    assert floors.prompts(work, on) == (83, 83, 83 - 2 * 19)
    assert floors.operations(work, on)["prefill"] == 2 * layer(83) + layer(45)


def test_a_packed_tower_with_windows():
    work = load("qwen2.5-vl-0.5b", Sizes(tiny=True, frames=4))

    def blocks(tokens: int) -> int:
        rows, width, hidden = 4 * tokens, 64, 96 * 3 // 2  # three matrices in the MLP
        seen = min(16, tokens) * 4
        linear = 8 * rows * width**2 + 4 * rows * width * hidden
        return 4 * linear + 2 * 4 * rows * seen * width + 2 * 4 * rows * rows * width

    bare = floors.operations(work, None)
    assert bare["encoder"] == blocks(24) + 2 * blocks(6)
    assert bare["prefill"] == 3 * layer(WORDS + 24 + 12)
    on = attached(work, "divprune", 0.5)  # after the tower: all of its blocks remain
    own = floors.operations(work, on)
    assert own["encoder"] == bare["encoder"]
    assert own["prefill"] == 3 * layer(WORDS + 12 + 6)
    assert floors.after_tower(work, on) == (12, 3)


@pytest.mark.parametrize(("keep", "floor"), [(64, 0.540), (32, 0.502), (16, 0.464)])
def test_the_floors_of_evoprunes_video_table(keep, floor):
    siglip = {"tokens": 729, "depth": 26, "width": 1152, "hidden": 4304}
    found = tokenzoo.build("evoprune", keep=keep).recipe.budget(**siglip).flops
    assert found == pytest.approx(floor, abs=5e-4)


def test_a_model_that_nothing_knows_has_none():
    work = load("resnet18")
    assert floors.operations(work, None) == {}
    assert floors.after_tower(work, None) == ()
