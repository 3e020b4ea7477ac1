"""GLM-4.xV: videos in the placeholders of images, and what is left after the convolution of its tower.

What it has in common with other models: tests/conformance.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tokenzoo
from tests.adapters.hf.models import IMAGE, video
from tests.adapters.hf.vlm import glm
from tests.adapters.hf.vlm.calls import FLOWER, TALL, WIDE, answer, logits
from tests.adapters.hf.vlm.rows_left import check_rows_left
from tests.adapters.models import gap
from tokenzoo import Stage

KINDS = pytest.mark.parametrize("make", [glm.glm4v, glm.glm4v_moe, glm.glm46v])


def films() -> Any:
    """Two prompts with a video each, of two slices and of one."""
    texts = [f"see {glm.FILM} . what is the dog ?", f"and {glm.FILM}"]
    return glm.inputs(texts, videos=[video(4), video(2, of=1)])


@KINDS
@torch.no_grad()
def test_what_is_left_of_images_and_videos_are_rows_of_the_bare_model(make: Any) -> None:
    model = make()
    photos = glm.inputs(["see <image> and <image>", "<image> ?"], [WIDE, FLOWER, TALL])
    for given in (photos, films()):
        told, said = logits(model, given), answer(model, given)
        with tokenzoo.build("tome", keep=1.0).attach(model):
            assert gap(logits(model, given), told) <= 1e-5
            assert torch.equal(answer(model, given), said)
        for stage in (Stage.BLOCK, Stage.FEATURES, Stage.PROJECTED):
            check_rows_left(model, given, IMAGE, stage)
