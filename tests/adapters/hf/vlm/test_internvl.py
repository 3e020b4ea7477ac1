"""InternVL's tower by itself; what it has in common with other models: tests/conformance/test_whole.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tokenzoo
from tests.adapters.hf.models import IMAGE, pixels, video
from tests.adapters.hf.vlm import internvl as iv
from tests.adapters.hf.vlm import plain_internvl as plain
from tests.adapters.hf.vlm.calls import NEW, WIDE, answer, logits
from tests.adapters.models import gap


def test_its_tower_alone_has_patches() -> None:
    """A group is a matter of the projector: without it each patch is a token."""
    tower = iv.internvl().model.vision_tower
    images = pixels(tower)
    with torch.no_grad():
        bare = tower(**images).last_hidden_state
        with tokenzoo.build("tome", keep=1.0).attach(tower):
            assert gap(tower(**images).last_hidden_state, bare) <= 1e-5
        with tokenzoo.build("tome", keep=20).attach(tower) as attached:
            short = tower(**images).last_hidden_state
    assert attached.counts == attached.plan().blocks
    assert short.shape[1:] == (1 + 20, bare.shape[2])


@pytest.mark.parametrize("vision", [{}, {"norm_type": "rms_norm", "use_qk_norm": True}])
@pytest.mark.parametrize("keep", [4, 7])
def test_groups_are_merged_as_in_a_plain_tower(vision: dict[str, Any], keep: int) -> None:
    """Against a dense tower, one tile at a time; four is a number that passes for a grid."""
    model = iv.internvl(vision=vision)
    tiles = iv.inputs(["<image> ?"], [WIDE])["pixel_values"]
    with torch.no_grad(), tokenzoo.build("tome", keep=keep).attach(model) as attached:
        found = model.model.get_image_features(tiles, return_dict=True).pooler_output
        counts = attached.counts
    assert counts == attached.plan().blocks
    assert counts[-1] == keep
    with torch.no_grad():
        expected = torch.stack([plain.tokens(model.model, tile, counts) for tile in tiles])
    assert gap(found, expected) <= 1e-5


def test_frames_of_a_video_are_tiles() -> None:
    """Each frame loses as many tokens as an image of its size; InternVL3.5 has a Qwen3."""
    model = iv.internvl(text={"model_type": "qwen3", "head_dim": 16})
    given = iv.processor("left")(
        text=["<video> what is this ?"], videos=[video(4)], return_tensors="pt"
    )
    frames = len(given["pixel_values"])
    with tokenzoo.build("evoprune", keep=6).attach(model) as attached:
        found = logits(model, given)
        short = attached.shorten(dict(given))["input_ids"]
        assert attached.counts == attached.plan().blocks
    assert int((given["input_ids"] == IMAGE).sum()) == frames * iv.TOKENS
    assert int((short == IMAGE).sum()) == frames * 6
    assert found.shape[1] == short.shape[1]
    for recipe in ("fastv", "cdpruner"):
        with tokenzoo.build(recipe, keep=6).attach(model):
            assert answer(model, given).shape == (1, NEW)
