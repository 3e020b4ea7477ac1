"""InternVL: tiles of an image, 2 x 2 patches a token, at every stage that it has."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.adapters.hf.models import IMAGE
from tests.adapters.hf.vlm import internvl as iv
from tests.adapters.hf.vlm.calls import (
    FLOWER,
    NONE,
    ONE,
    TALL,
    TWO,
    WIDE,
    ends,
    entering,
    logits,
    remains,
)
from tests.adapters.models import gap
from tests.adapters.models import one_thread as one_thread
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import UnsupportedModelError
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import FeatureNorm


def everywhere(keep: int | float) -> tokenzoo.Method:
    """Merged in the blocks, then chosen after the last, after the projector and before layer 2."""
    (block,) = tokenzoo.build("evoprune", start=0).recipe.steps
    chosen = SelectAssign(TopK(FeatureNorm()), Drop())
    return tokenzoo.build(
        Recipe(
            Step(Stage.BLOCK, Once(0, keep=2.0), block.matcher, block.merger),
            Step(Stage.FEATURES, Once(keep=1.5), chosen, Identity()),
            Step(Stage.PROJECTED, Once(keep=1.2), chosen, Identity()),
            Step(Stage.LLM(2), Once(), chosen, Identity()),
            keep=keep,
        )
    )


STAGES: dict[str, Callable[..., Any]] = {
    "block": partial(tokenzoo.build, "tome"),
    "features": partial(tokenzoo.build, "fastervlm"),
    "projected": partial(tokenzoo.build, "divprune"),
    "everywhere": everywhere,
    "llm": partial(tokenzoo.build, "fastv"),
}
EACH = pytest.mark.parametrize("stage", STAGES)
PROMPTS = (ONE, TWO, NONE)
IMAGES = (WIDE, TALL, FLOWER)
SHORTER = frozenset(STAGES) - {"llm", "everywhere"}
"""Stages after which the prompt is shorter."""


@cache
def bare() -> Any:
    """The model, the same for all tests: they leave it bare."""
    return iv.internvl()


def batch(side: str = "left") -> Any:
    """Three prompts: one image, two, none; of several tiles each."""
    return iv.inputs(PROMPTS, IMAGES, side)


@EACH
@pytest.mark.parametrize("keep", [5, 7])
def test_every_tile_keeps_what_is_planned(stage: str, keep: int) -> None:
    model, given = iv.internvl(), batch()
    expected = logits(model, given)
    before = {path: set(vars(module)) for path, module in model.named_modules()}
    tiles = (given["input_ids"] == IMAGE).sum(1) // iv.TOKENS
    with STAGES[stage](keep=keep).attach(model) as attached:
        assert attached.plan().tokens == iv.TOKENS
        visual = attached.plan().visual
        assert visual == {"llm": iv.TOKENS, "everywhere": round(keep * 1.2)}.get(stage, keep)
        short = attached.shorten(dict(given))["input_ids"]
        with entering(model) as calls:
            found = logits(model, given)
        assert torch.equal((short == IMAGE).sum(1), tiles * visual)
        assert calls[0]["inputs_embeds"].shape[1] == short.shape[1]
        if stage != "llm":
            assert attached.features == visual
            assert attached.counts == attached.plan().blocks
        if stage not in SHORTER:
            assert attached.prompts == tuple((tiles * keep).tolist())
    assert gap(found[:2, -1], expected[:2, -1]) > 1e-3
    assert torch.equal(logits(model, given), expected)
    assert remains(model) == []
    assert {path: set(vars(module)) for path, module in model.named_modules()} == before


def test_its_tower_alone_has_patches() -> None:
    """A group is a matter of the projector: without it each patch is a token."""
    tower, images = iv.internvl().model.vision_tower, {"pixel_values": batch()["pixel_values"]}
    with torch.no_grad():
        bare = tower(**images).last_hidden_state
        with tokenzoo.build("tome", keep=1.0).attach(tower):
            assert gap(tower(**images).last_hidden_state, bare) <= 1e-5
        with tokenzoo.build("tome", keep=20).attach(tower) as attached:
            short = tower(**images).last_hidden_state
    assert attached.counts == attached.plan().blocks
    assert short.shape[1:] == (1 + 20, bare.shape[2])


def by_norm(stage: Stage, keep: int) -> Recipe:
    """The tokens with the largest features stay; the rest go, of the blocks in the last."""
    matcher = SelectAssign(TopK(FeatureNorm()), Drop())
    schedule = Once(-1) if stage == Stage.BLOCK else Once()
    return Recipe(Step(stage, schedule, matcher, Identity()), keep=keep)


def embedded(model: Any, given: Any, features: Tensor) -> Tensor:
    """What a bare model says of a prompt whose images have these features, `[b, n, words]`."""
    embeds = model.get_input_embeddings()(given["input_ids"])
    embeds[given["input_ids"] == IMAGE] = features.flatten(0, 1)
    return logits(model, {"inputs_embeds": embeds, "attention_mask": given["attention_mask"]})


@pytest.mark.parametrize("stage", [Stage.BLOCK, Stage.FEATURES, Stage.PROJECTED], ids=repr)
@pytest.mark.parametrize("options", [{}, {"norm_type": "rms_norm", "use_qk_norm": True}], ids=str)
def test_what_is_left_are_rows_of_the_bare_model(stage: Stage, options: dict[str, Any]) -> None:
    """Four groups of each tile: a square number, which the pixel shuffle would take for a grid."""
    model, given = iv.internvl(vision=options), batch()
    with torch.no_grad():
        rows = model.model.get_image_features(given["pixel_values"], return_dict=True).pooler_output
        with tokenzoo.build(by_norm(stage, 4)).attach(model, trace=True) as attached:
            found, short = logits(model, given), attached.shorten(dict(given))
            kept = attached.record.keep  # [tiles, prefix + m]
        kept = kept[:, kept.shape[1] - 4 :] - (kept.shape[1] - 4)
        assert not torch.equal(kept, torch.arange(4).expand_as(kept))
        rows = rows.gather(1, kept[..., None].expand(-1, -1, rows.shape[2]))
        expected = embedded(model, short, rows)
    last = torch.arange(3)
    assert gap(found[last, ends(short)], expected[last, ends(short)]) <= 1e-5


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("vision_feature_layer", -2, "vision_feature_layer=-2; .* set it to -1"),
        ("vision_feature_select_strategy", "full", "strategy='full': set it to 'default'"),
    ],
)
def test_what_it_reads_of_its_tower_is_refused(name: str, value: Any, says: str) -> None:
    with pytest.raises(UnsupportedModelError, match=says):
        tokenzoo.build("divprune", keep=5).attach(iv.internvl(**{name: value}))
