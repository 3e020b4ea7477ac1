"""Positions of M-RoPE that are known in two steps, as those of a prompt whose images are encoded."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from tokenzoo_adapters.hf.vlm import mrope
from tokenzoo_adapters.hf.vlm.placeholders import VisualSpan
from tokenzoo_adapters.vllm.positions import (
    BASE,
    CHANNELS,
    coordinates,
    planned_positions,
    recomputed,
    with_coordinates,
)

import tokenzoo
from tests.adapters.hf.vlm.qwen import inputs, photos, qwen2_5_vl, qwen2_vl
from tokenzoo.errors import AttachError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_coordinates_survive_every_precision(dtype: torch.dtype) -> None:
    columns = 1000
    left = torch.tensor([0, 127, 128, 257, 999, 1000, 300_300, 999_999])
    features = torch.randn(len(left), 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    wide = with_coordinates(features, left, columns)
    assert torch.equal(wide[:, :-CHANNELS], features)
    rows, across = coordinates(wide[:, -CHANNELS:])
    assert torch.equal(rows * columns + across, left)


def test_an_image_that_cannot_be_counted_is_refused() -> None:
    with pytest.raises(AttachError, match="16385 tokens along one side"):
        with_coordinates(torch.zeros(1, 2), torch.tensor([BASE * BASE]), BASE * BASE + 1)


@pytest.mark.parametrize("make", [qwen2_vl, qwen2_5_vl])
@pytest.mark.parametrize("cuts", [(), (9,), (4, 7, 15, 20)], ids=str)
def test_positions_are_those_of_the_encoded_prompt(make: Any, cuts: tuple[int, ...]) -> None:
    """In one part, in parts that end within images, and with a part that is read again."""
    model = make()
    base, token = model.model, model.config.image_token_id
    _, flower, tall, *_ = photos()
    given = inputs(model, "see <image> and <image> describe it", [flower, tall])
    attached = tokenzoo.build("evoprune", keep=0.4).attach(model)
    short = attached.shorten(given)
    with torch.no_grad():
        images = base.get_image_features(
            given["pixel_values"], given["image_grid_thw"], return_dict=True
        ).pooler_output
    left, grids = attached.left, given["image_grid_thw"].tolist()
    spans = [VisualSpan(h * w // 4, len(one)) for (_, h, w), one in zip(grids, left, strict=True)]
    wanted, after = mrope.positions(base, short, {token: spans}, {token: list(left)})
    ids = short["input_ids"][0]
    counts = [len(one) for one in left]
    found, delta = planned_positions(base, ids.tolist(), token, grids, counts)
    assert delta == int(after[0, 0]) - len(ids)
    assert not torch.equal(found, wanted[:, 0])
    wide = [
        with_coordinates(image, one, w // 2)
        for image, one, (_, _, w) in zip(images, left, grids, strict=True)
    ]
    rows = torch.cat(wide)
    owner = torch.arange(len(wide)).repeat_interleave(torch.tensor(counts))
    features = []
    parts = [*pairwise((0, *cuts, len(ids)))]
    for begin, end in [parts[0], *parts]:  # the first is read twice, as after a preemption
        before, until = (int((ids[:place] == token).sum()) for place in (begin, end))
        now, whose = rows[before:until], owner[before:until]
        pieces = [now[whose == image] for image in whose.unique().tolist()]
        cut, found, delta = recomputed(ids, token, pieces, found, begin)
        features += cut
    assert torch.equal(found, wanted[:, 0])
    assert delta == int(after[0, 0]) - len(ids)
    first = int((ids[: parts[0][1]] == token).sum())
    assert torch.equal(torch.cat(features)[first:], torch.cat([*images]))


def test_a_prompt_without_images_has_plain_positions() -> None:
    model = qwen2_vl()
    found, delta = planned_positions(model.model, [9, 8, 7], model.config.image_token_id, [], [])
    assert torch.equal(found, torch.arange(3).expand(3, -1))
    assert delta == 0
