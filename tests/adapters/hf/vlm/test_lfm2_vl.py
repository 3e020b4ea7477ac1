"""LFM2-VL's images of several sizes and its convolutions; the rest: tests/conformance/test_whole.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tokenzoo
from tests.adapters.hf.vlm import lfm2_vl as l2
from tests.adapters.hf.vlm.calls import FLOWER, TALL, WIDE, remains
from tests.adapters.models import gap
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import AttachError
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import FeatureNorm

LARGE = SelectAssign(TopK(FeatureNorm()), Drop())
IMAGES = [[WIDE], [TALL.resize((40, 70)), FLOWER.resize((56, 56))]]
PROMPTS = ["see <image> there", "<image> and <image> ?"]


@pytest.mark.parametrize("stage", [Stage.BLOCK, Stage.FEATURES, Stage.PROJECTED], ids=repr)
def test_what_is_left_of_every_size_are_rows_of_the_bare_model(stage: Stage) -> None:
    """Which are encoded with padding and masks, in one batch: four groups of each, a square number."""
    model, given = l2.lfm2_vl(), l2.inputs(PROMPTS, IMAGES)
    names = ("pixel_values", "spatial_shapes", "pixel_attention_mask")
    call = {name: given[name] for name in names}
    kept: list[Any] = []
    step = Step(stage, Once(-1 if stage == Stage.BLOCK else None), LARGE, Identity())
    with torch.no_grad():
        bare = model.model.get_image_features(**call, return_dict=True).pooler_output
        zoo = tokenzoo.build(Recipe(step, keep=4))
        with zoo.attach(model, trace=True, on_reduce=lambda event: kept.append(event.plan.keep)):
            found = model.model.get_image_features(**call, return_dict=True)
    shapes = [tuple(shape) for shape in given["spatial_shapes"].tolist()]
    assert len(kept) == len(set(shapes)) > 2
    for i, (rows, mine) in enumerate(zip(bare, found.pooler_output, strict=True)):
        run, place = list(dict.fromkeys(shapes)).index(shapes[i]), shapes[:i].count(shapes[i])
        assert gap(mine, rows[kept[run][place]]) <= 1e-5
    assert found.last_hidden_state.shape[0] == len(shapes)
    assert remains(model) == []


def test_sizes_that_do_not_fit_are_refused() -> None:
    model, given = l2.lfm2_vl(), l2.inputs(PROMPTS, IMAGES)
    shapes = given["spatial_shapes"]
    with tokenzoo.build("tome", keep=4).attach(model):
        for new, match in ((shapes + 1, "multiples of 2"), (shapes + 2, "and 64 were passed")):
            with pytest.raises(AttachError, match=match):
                model.model.get_image_features(
                    given["pixel_values"], new, given["pixel_attention_mask"]
                )


def test_the_language_model_is_not_reduced() -> None:
    with pytest.raises(AttachError, match=r"Lfm2Model is not supported at the stage 'llm'.*conv"):
        tokenzoo.build("fastv", keep=4).attach(l2.lfm2_vl())
