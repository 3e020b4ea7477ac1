"""The small Qwen models that other tests build on are sound: nothing in them is degenerate."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from tests.adapters.hf.models import SPECIAL
from tests.adapters.hf.vlm import qwen as hf

_, FLOWER, TALL, WIDE, *_ = hf.photos()
QWENS = {"qwen2_vl": hf.qwen2_vl, "qwen2_5_vl": hf.qwen2_5_vl}


@pytest.fixture(scope="module", params=QWENS)
def model(request: pytest.FixtureRequest) -> Any:
    return QWENS[request.param]()


def test_attention_is_far_from_uniform_and_blocks_change_their_tokens(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = sys.modules[type(model).__module__]
    honest, maps, passed = own.eager_attention_forward, [], []

    def seen(*args: Any, **options: Any) -> Any:
        output = honest(*args, **options)
        maps.append(output[1])  # [1, h, n, n] of a window, or of the image
        return output

    monkeypatch.setattr(own, "eager_attention_forward", seen)
    visual = model.model.visual
    hooks = [
        block.register_forward_hook(lambda _, args, out: passed.append((args[0], out)))
        for block in visual.blocks
    ]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        visual(**hf.pixels(visual, [(1, 10, 14)]))
    model.set_attn_implementation("sdpa")
    for hook in hooks:
        hook.remove()
    windows = 2 * 3  # of 3 x 3 tokens, in three of the blocks
    assert len(maps) == (5 if model.config.model_type == "qwen2_vl" else 2 + 3 * windows)
    for map_ in maps:
        entropy = -(map_ * map_.clamp_min(1e-30).log()).sum(-1)
        # In a window of 12 patches there is less to choose from than in an image of 140.
        limit = 0.7 if map_.shape[-1] == 140 else 0.8
        assert 1.5 < entropy.exp().mean() < limit * map_.shape[-1], map_.shape
    assert len(passed) == 5
    for before, after in passed:
        assert (after - before).norm() > 0.2 * before.norm()


def test_answers_depend_on_the_photograph_and_on_the_video(model: Any) -> None:
    given = [hf.inputs(model, "see <image> now", [photo]) for photo in (TALL, FLOWER, WIDE)]
    given += [hf.inputs(model, "see <video> now", videos=[hf.video(4, of)]) for of in (0, 1)]
    answers = set()
    for inputs in given:
        said = model.generate(**inputs, max_new_tokens=8)
        new = said[0, inputs["input_ids"].shape[1] :]
        assert (new >= len(SPECIAL)).all()  # words
        answers.add(tuple(new.tolist()))
    assert len(answers) == len(given)
