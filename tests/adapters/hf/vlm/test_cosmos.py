"""Cosmos3-Edge: a packed tower whose merger is the projector of the model.

What it has in common with other models: tests/conformance and test_videos.py.
"""

from __future__ import annotations

import pytest
import torch

import tokenzoo
from tests.adapters.hf.models import IMAGE, VIDEO, video
from tests.adapters.hf.vlm import cosmos
from tests.adapters.hf.vlm.calls import FLOWER, TALL, WIDE
from tests.adapters.hf.vlm.rows_left import check_rows_left
from tests.adapters.hf.vlm.test_packed_tower import dropping, kept
from tokenzoo import Stage
from tokenzoo.schedules import Once

pytestmark = pytest.mark.skipif(not cosmos.KNOWN, reason="transformers before 5.24")


@pytest.mark.parametrize("stage", [Stage.BLOCK, Stage.FEATURES, Stage.PROJECTED])
@torch.no_grad()
def test_what_is_left_are_rows_of_the_bare_model(stage: Stage) -> None:
    model = cosmos.cosmos3_edge()
    photos = cosmos.inputs(["see <image> and <image>", "<image> ?"], [WIDE, FLOWER, TALL])
    films = cosmos.inputs(["see <video> .", "and <video> ?"], videos=[video(3), video(2, of=1)])
    for token, given in ((IMAGE, photos), (VIDEO, films)):
        check_rows_left(model, given, token, stage)


@torch.no_grad()
def test_the_tower_alone_returns_the_patches_of_the_groups_that_are_left() -> None:
    tower = cosmos.cosmos3_edge().model.visual
    given = cosmos.inputs(["<image> and <image>"], [WIDE, FLOWER])
    pixels, grids = given["pixel_values"], given["image_grid_thw"]
    whole = tower(pixels, grids).last_hidden_state
    zoo = tokenzoo.build(dropping(Once(-1), 0.4, Stage.FEATURES))
    with zoo.attach(tower, trace=True) as attached:
        found = tower(pixels, grids).last_hidden_state
        rows = kept(attached)
    groups = (grids.prod(1) // 4).tolist()
    index = torch.cat([rows[0], rows[1] + groups[0]])
    assert len(index) < sum(groups)
    assert torch.equal(found.view(-1, 4, 48), whole.view(-1, 4, 48)[index])
