"""Features of inner blocks (deepstack) have a row for each token that is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.adapters.hf.vlm import plain_qwen as plain
from tests.adapters.hf.vlm import test_packed_tower as packed
from tests.adapters.hf.vlm.test_packed_tower import MIXED, Replay
from tests.adapters.models import gap, one_thread  # noqa: F401
from tokenzoo import Recipe, Stage
from tokenzoo.hooks.reduction import Event
from tokenzoo.schedules import Explicit, Once

STREAMS = 3  # of the blocks 0, 2 and 3 of five
STAGES = (Stage.BLOCK, Stage.FEATURES, Stage.PROJECTED)


def streams(model: Any, x: Tensor) -> list[Tensor]:
    return model(x, grid_thw=torch.tensor(MIXED)).deepstack_features


@pytest.mark.parametrize("stage", STAGES, ids=repr)
def test_dropped_at_the_end_they_are_the_rows_of_the_bare_tower(stage: Stage) -> None:
    model = packed.tower("qwen3_vl")
    x = packed.pixels(model, MIXED)
    whole = streams(model, x)
    with tokenzoo.build(packed.dropping(Once(-1), 0.4, stage)).attach(
        model, trace=True
    ) as attached:
        found, rows = streams(model, x), packed.kept(attached)
    starts = torch.tensor([0, *packed.sizes()]).cumsum(0)
    left = torch.cat([own + begin for own, begin in zip(rows, starts, strict=False)])
    assert [torch.equal(one, own[left]) for one, own in zip(found, whole, strict=True)] == [
        True
    ] * STREAMS


@pytest.mark.parametrize(
    "recipe",
    [
        packed.dropping(Explicit((2, 3, 0, 2, 2)), None),
        tokenzoo.build("tome", r=[2, 3, 0, 2, 2]).recipe,
        tokenzoo.build("evoprune", keep=0.3, start=0).recipe,
    ],
    ids=["random", "tome", "evoprune"],
)
def test_they_are_those_of_the_plain_tower(recipe: Recipe) -> None:
    """And so are their gradients."""
    model = packed.tower("qwen3_vl")
    x = packed.pixels(model, MIXED)
    events: list[Event] = []
    with tokenzoo.build(recipe).attach(model, on_reduce=events.append):
        found = streams(model, x)
    proportional = recipe.proportional_attention
    images = plain.run(model, x, MIXED, Replay(events, MIXED), proportional=proportional)
    expected = plain.streams(images)
    for one, own in zip(found, expected, strict=True):
        assert gap(one, own) <= 1e-4
    weights = torch.randn(found[0].shape, generator=torch.Generator().manual_seed(0))
    parameters = list(model.deepstack_merger_list.parameters())
    made, plain_made = (
        torch.autograd.grad(sum((one * weights).sum() for one in several), parameters)
        for several in (found, expected)
    )
    assert max(gap(a, b) for a, b in zip(made, plain_made, strict=True)) <= 1e-3
