"""The small Qwen models that other tests build on are sound: nothing in them is degenerate."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from tests.adapters.hf.models import IMAGE, SPECIAL
from tests.adapters.hf.vlm import qwen as hf
from tests.adapters.models import gap, one_thread  # noqa: F401

_, FLOWER, TALL, WIDE, *_ = hf.photos()
ONE = "see <image> and describe this photo"
TWO = "see <image> and <image> describe the second photo"
SEEN = "see <video> what is this ?"

QWENS = {"qwen2_vl": hf.qwen2_vl, "qwen2_5_vl": hf.qwen2_5_vl}


@pytest.fixture(scope="module", params=QWENS)
def model(request: pytest.FixtureRequest) -> Any:
    return QWENS[request.param]()


def test_a_model_is_always_the_same(model: Any) -> None:
    again = QWENS[model.config.model_type]()
    for one, two in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert not model.training
    assert model.generation_config.eos_token_id is None
    assert sum(model.config.text_config.rope_parameters["mrope_section"]) == 8  # of 16 / 2


def test_groups_are_as_many_as_placeholders_and_windows_are_ragged(model: Any) -> None:
    given = hf.inputs(model, ONE, [TALL])
    _, height, width = given["image_grid_thw"][0].tolist()
    assert height != width
    assert int((given["input_ids"] == IMAGE).sum()) == height * width // 4
    visual = model.model.visual
    if model.config.model_type == "qwen2_5_vl":
        side = visual.window_size // (2 * hf.PATCH)
        assert height // 2 % side or width // 2 % side
        assert visual.fullatt_block_indexes == [2, 4]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_padded_batch_are_the_rows_alone(model: Any, side: str) -> None:
    batch = hf.inputs(model, [ONE, TWO], [TALL, FLOWER, WIDE], padding_side=side)
    mask = batch["attention_mask"].bool()
    assert not mask[0].all()
    with torch.no_grad():
        together = model(**batch).logits
        for row, (prompt, images) in enumerate(((ONE, [TALL]), (TWO, [FLOWER, WIDE]))):
            alone = model(**hf.inputs(model, prompt, images)).logits[0]
            assert gap(together[row][mask[row]], alone) < 1e-4


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
    given = [hf.inputs(model, ONE, [photo]) for photo in (TALL, FLOWER, WIDE)]
    given += [hf.inputs(model, SEEN, videos=[hf.video(4, of)]) for of in (0, 1)]
    answers = set()
    for inputs in given:
        said = model.generate(**inputs, max_new_tokens=8)
        new = said[0, inputs["input_ids"].shape[1] :]
        assert (new >= len(SPECIAL)).all()  # words
        answers.add(tuple(new.tolist()))
    assert len(answers) == len(given)
