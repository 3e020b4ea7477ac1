"""Idefics3's and SmolVLM's padding, masks and videos; the rest: tests/conformance/test_whole.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import tokenzoo
from tests.adapters.hf.models import IMAGE, SIDE, _tokenizer, video
from tests.adapters.hf.vlm import idefics3 as i3
from tests.adapters.hf.vlm.calls import FLOWER, TALL, answer, logits, real_gap, remains
from tests.adapters.models import gap
from tokenzoo.errors import AttachError

PROMPTS = ["see <image> there", "<image> and <image> ?"]


def given() -> Any:
    return i3.inputs(PROMPTS, [[TALL], [FLOWER, TALL]])


@pytest.mark.parametrize("kind", ["idefics3", "smolvlm"])
def test_attention_with_a_mask_of_all_patches(kind: str) -> None:
    """Where the attention is "eager" the tower makes a mask for all patches, which masks nothing."""
    model, inputs = getattr(i3, kind)(), given()
    model.set_attn_implementation("eager")
    bare = logits(model, inputs)
    with tokenzoo.build("tome", keep=1.0).attach(model):
        assert real_gap(logits(model, inputs), bare, inputs["attention_mask"]) <= 1e-5
    with tokenzoo.build("tome", keep=6).attach(model) as attached:
        answer(model, inputs)
        assert attached.counts == attached.plan().blocks


@pytest.mark.parametrize("kind", ["idefics3", "smolvlm"])
def test_a_tile_that_is_partly_padding_is_refused(kind: str) -> None:
    model, inputs = getattr(i3, kind)(), given()
    bare = logits(model, inputs)
    padded = {**inputs, "pixel_attention_mask": inputs["pixel_attention_mask"].clone()}
    padded["pixel_attention_mask"][0, 0, SIDE // 2 :] = 0
    with tokenzoo.build("tome", keep=6).attach(model):
        with pytest.raises(AttachError, match=r"does not fill its patches \(patch_attention_mask"):
            model(**padded)
        short = logits(model, inputs)
        # Pixels of a patch that has others are no padding to the model.
        padded["pixel_attention_mask"] = inputs["pixel_attention_mask"].clone()
        padded["pixel_attention_mask"][0, 0, -1] = 0
        assert torch.equal(logits(model, padded), short)
    assert torch.equal(logits(model, inputs), bare)
    assert remains(model) == []


def test_frames_of_a_video_are_tiles() -> None:
    """SmolVLM's own processor writes the time of each frame."""
    pytest.importorskip("num2words", reason="SmolVLM's processor needs num2words")
    size = {"longest_edge": SIDE}
    films = transformers.SmolVLMVideoProcessor(
        size=size,
        max_image_size=size,
        do_sample_frames=False,
        video_sampling={"video_size": size, "max_frames": 4, "fps": 1},
    )
    processor = transformers.SmolVLMProcessor(
        i3.images("SmolVLM"), _tokenizer("left"), films, image_seq_len=i3.TOKENS
    )
    inputs = processor(text=["<video> what is this ?"], videos=[video(4)], return_tensors="pt")
    model = i3.smolvlm()
    with tokenzoo.build("evoprune", keep=6).attach(model) as attached:
        found = logits(model, inputs)
        short = attached.shorten(dict(inputs))["input_ids"]
    frames = inputs["pixel_values"].shape[1]
    assert int((inputs["input_ids"] == IMAGE).sum()) == frames * i3.TOKENS
    assert int((short == IMAGE).sum()) == frames * 6
    assert found.shape[1] == short.shape[1]
    assert gap(found[:, -1], logits(model, inputs)[:, -1]) > 1e-3
