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
from tests.adapters.hf.vlm.calls import FLOWER, TALL, WIDE, answer, entering, logits
from tests.adapters.hf.vlm.test_packed_tower import dropping, kept
from tests.adapters.models import gap
from tokenzoo import Stage
from tokenzoo.schedules import Once

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
        with entering(model) as calls:
            model(**given)
        ids = given["input_ids"]
        for stage in (Stage.BLOCK, Stage.FEATURES, Stage.PROJECTED):
            zoo = tokenzoo.build(dropping(Once(-1), 0.4, stage))
            with zoo.attach(model, trace=True) as attached, entering(model) as short:
                model(**given)
                rows, left = kept(attached), attached.shorten(given)["input_ids"] == IMAGE
            sizes = sorted((i, one.tokens) for one in attached.passes for i in one.images)
            starts = torch.tensor([0, *(n for _, n in sizes)]).cumsum(0)
            index = torch.cat([own + first for own, first in zip(rows, starts, strict=False)])
            whole = calls[0]["inputs_embeds"][ids == IMAGE]
            assert gap(short[0]["inputs_embeds"][left], whole[index]) <= 1e-5
            places = calls[0]["position_ids"][:, ids == IMAGE][:, index]
            assert torch.equal(short[0]["position_ids"][:, left], places)
