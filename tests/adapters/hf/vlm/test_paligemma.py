"""PaliGemma, with a Gemma and with a Gemma 2: a prefix whose tokens see each other in both directions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from tokenzoo_adapters.hf.vlm.prompt_hooks import PromptHooks
from torch import Tensor

import tokenzoo
from tests.adapters.hf.models import IMAGE
from tests.adapters.hf.vlm import paligemma as pg
from tests.adapters.hf.vlm.calls import (
    FLOWER,
    TALL,
    WIDE,
    answer,
    ends,
    entering,
    logits,
    real_gap,
    remains,
)
from tests.adapters.models import gap
from tests.adapters.models import one_thread as one_thread
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import AttachError
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import FeatureNorm

CHOSEN = SelectAssign(TopK(FeatureNorm()), Drop())
STAGES: dict[str, Callable[..., Any]] = {
    "block": partial(tokenzoo.build, "tome"),
    "features": lambda keep: tokenzoo.build(
        Recipe(Step(Stage.FEATURES, Once(), CHOSEN, Identity()), keep=keep)
    ),
    "projected": partial(tokenzoo.build, "divprune"),
}
TEXT = pytest.mark.parametrize("text", ["gemma", "gemma2"])
EACH = pytest.mark.parametrize("stage", STAGES)
SIDES = pytest.mark.parametrize("side", ["left", "right"])
PROMPTS = ("<image> what is this ?", "<image> <image> what is different here and there ?")
SUFFIX = ("a cat", "a dog and a bird")
IMAGES = (WIDE, TALL, FLOWER)
TYPES = "token_type_ids"


@cache
def bare(text: str) -> Any:
    """The model, the same for all tests: they leave it bare."""
    return pg.paligemma(text)


def batch(side: str = "left", suffix: tuple[str, ...] | None = None) -> Any:
    """Two prompts: one image, and two."""
    return pg.inputs(PROMPTS, IMAGES, side, suffix)


@TEXT
@EACH
@SIDES
def test_keeping_all_changes_nothing(text: str, stage: str, side: str) -> None:
    model, given = bare(text), batch(side, SUFFIX)
    expected = logits(model, given)
    with STAGES[stage](keep=1.0).attach(model):
        found = logits(model, given)
        answers = answer(model, batch())
    assert real_gap(found, expected, given["attention_mask"]) <= 1e-4
    assert torch.equal(answers, answer(model, batch()))


@TEXT
@EACH
@pytest.mark.parametrize("keep", [5, 7])
def test_every_image_keeps_what_is_planned(text: str, stage: str, keep: int) -> None:
    model, given = pg.paligemma(text), batch(suffix=SUFFIX)
    expected = logits(model, given)
    before = {path: set(vars(module)) for path, module in model.named_modules()}
    with STAGES[stage](keep=keep).attach(model) as attached:
        assert attached.plan().tokens == pg.TOKENS
        assert attached.plan().visual == keep
        short = attached.shorten(dict(given))
        with entering(model) as calls:
            found = logits(model, given)
        assert (short["input_ids"] == IMAGE).sum(1).tolist() == [keep, 2 * keep]
        assert calls[0]["inputs_embeds"].shape[1] == short["input_ids"].shape[1]
        assert attached.counts == attached.plan().blocks
    assert torch.equal(short[TYPES].sum(1), given[TYPES].sum(1))
    assert gap(found[:, -1], expected[:, -1]) > 1e-3
    assert torch.equal(logits(model, given), expected)
    assert remains(model) == []
    assert {path: set(vars(module)) for path, module in model.named_modules()} == before


def embedded(model: Any, given: Any, features: Tensor) -> Any:
    """What a bare model returns for a prompt whose images have these features, `[b, n, words]`."""
    embeds = model.get_input_embeddings()(given["input_ids"])
    embeds[given["input_ids"] == IMAGE] = features.flatten(0, 1)
    names = ("attention_mask", TYPES, "labels")
    return model(inputs_embeds=embeds, **{name: given[name] for name in names})


@TEXT
@SIDES
@pytest.mark.parametrize("stage", [Stage.BLOCK, Stage.FEATURES, Stage.PROJECTED], ids=repr)
def test_what_is_left_are_rows_of_the_bare_model(text: str, stage: Stage, side: str) -> None:
    """And the prompt, of which all but the suffix is the prefix, has its logits and its loss."""
    model, given = bare(text), batch(side, SUFFIX)
    schedule = Once(-1) if stage == Stage.BLOCK else Once()
    recipe = Recipe(Step(stage, schedule, CHOSEN, Identity()), keep=4)
    with torch.no_grad():
        rows = model.model.get_image_features(given["pixel_values"], return_dict=True).pooler_output
        with tokenzoo.build(recipe).attach(model, trace=True) as attached:
            found = model(**given)
            kept = attached.record.keep
        with tokenzoo.build(recipe).attach(model) as attached:
            # As `forward` shortens a call with labels.
            short = PromptHooks(attached.adapter, attached).shorten(given, pad_left=side == "left")
        assert not torch.equal(kept, torch.arange(4).expand_as(kept))
        rows = rows.gather(1, kept[..., None].expand(-1, -1, rows.shape[2]))
        expected = embedded(model, short, rows)
        causal = {**short, TYPES: torch.ones_like(short[TYPES])}
        other = embedded(model, causal, rows)
    last = torch.arange(2), ends(short)
    assert gap(found.logits[last], expected.logits[last]) <= 1e-5
    assert gap(found.loss, expected.loss) <= 1e-5
    assert gap(other.logits[last], expected.logits[last]) > 1e-3  # the prefix matters


@TEXT
def test_its_language_model_is_refused(text: str) -> None:
    model = bare(text)
    with pytest.raises(AttachError, match=r"Gemma2?Model is not supported at the stage 'llm'"):
        tokenzoo.build("fastv", keep=5).attach(model)
    assert remains(model) == []
