"""Features of inner blocks (deepstack) have a row for each token that is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.adapters.hf.vlm import plain_qwen as plain
from tests.adapters.hf.vlm import qwen
from tests.adapters.hf.vlm import test_packed_tower as packed
from tests.adapters.hf.vlm.calls import TALL, entering
from tests.adapters.hf.vlm.test_packed_tower import MIXED, Replay
from tests.adapters.models import gap
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import AttachError
from tokenzoo.hooks.reduction import Event
from tokenzoo.matchers import Drop, Nearest, SelectAssign, TopK
from tokenzoo.mergers import Identity, WeightedMean
from tokenzoo.schedules import Explicit, Once
from tokenzoo.scorers import FeatureNorm, Similarity

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
        told = model(x, grid_thw=torch.tensor(MIXED), return_dict=False)[-1]
    assert all(map(torch.equal, told, found))
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


@torch.no_grad()
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_layers_of_the_language_model_add_them_to_the_tokens_that_are_left(layer: int) -> None:
    model = qwen.qwen3_vl()
    given = qwen.inputs(model, "see <image> and the dog", [TALL])
    step = Step(Stage.LLM(layer), Once(), SelectAssign(TopK(FeatureNorm()), Drop()), Identity())
    events: list[Event] = []
    with entering(model) as calls:
        model(**given)
    with tokenzoo.build(Recipe(step, keep=0.3)).attach(model, on_reduce=events.append):
        found = model(**given).logits[0]
    told, language = calls[0], model.model.language_model
    x, visual, deep = (
        told["inputs_embeds"],
        told["visual_pos_masks"],
        told["deepstack_visual_embeds"],
    )
    places = visual[0].nonzero()[:, 0]
    left = ~visual[0]
    left[places[events[0].plan.keep[0]]] = True
    angles, added = language.rotary_emb(x, told["position_ids"]), []
    for rows in deep:
        added.append(torch.zeros_like(x))
        added[-1][visual] = rows
    for i, block in enumerate(language.layers):
        if i == layer:
            x, angles = x[:, left], tuple(one[:, left] for one in angles)
            added = [one[:, left] for one in added]
        x = block(x, position_embeddings=angles) + (added[i] if i < STREAMS else 0)
    assert gap(found[left], model.lm_head(language.norm(x))[0]) <= 1e-4


def test_merging_where_the_language_model_still_adds_is_refused() -> None:
    join = SelectAssign(TopK(FeatureNorm()), Nearest(Similarity("x")))
    model = qwen.qwen3_vl()
    step = Step(Stage.LLM(2), Once(), join, WeightedMean())
    with pytest.raises(
        AttachError, match=r"LLM\(2\) merges tokens by WeightedMean.* at layer 3 or later"
    ):
        tokenzoo.build(Recipe(step, keep=0.3)).attach(model)
    step = Step(Stage.LLM(3), Once(), join, WeightedMean())
    tokenzoo.build(Recipe(step, keep=0.3)).attach(model).detach()
