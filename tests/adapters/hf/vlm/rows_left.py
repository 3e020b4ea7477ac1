"""What is left of the images of a packed model: the rows and positions of the bare model."""

from __future__ import annotations

from typing import Any

import torch

import tokenzoo
from tests.adapters.hf.vlm.calls import entering
from tests.adapters.hf.vlm.test_packed_tower import dropping, kept
from tests.adapters.models import gap
from tokenzoo import Stage
from tokenzoo.schedules import Once


def check_rows_left(model: Any, given: Any, token: int, stage: Stage) -> None:
    """Drop groups at random at the end of the tower or after it: the others enter as in the bare model.

    Args:
        model: a whole model with a packed tower.
        given: a call.
        token: the placeholder of its images, or of its videos.
        stage: where groups are dropped.
    """
    with entering(model) as calls:
        model(**given)
    ids = given["input_ids"]
    zoo = tokenzoo.build(dropping(Once(-1), 0.4, stage))
    with zoo.attach(model, trace=True) as attached, entering(model) as short:
        model(**given)
        rows, left = kept(attached), attached.shorten(given)["input_ids"] == token
    sizes = sorted((i, one.tokens) for one in attached.passes for i in one.images)
    starts = torch.tensor([0, *(n for _, n in sizes)]).cumsum(0)
    index = torch.cat([own + first for own, first in zip(rows, starts, strict=False)])
    whole = calls[0]["inputs_embeds"][ids == token]
    assert gap(short[0]["inputs_embeds"][left], whole[index]) <= 1e-5
    places = calls[0]["position_ids"][:, ids == token][:, index]
    assert torch.equal(short[0]["position_ids"][:, left], places)
