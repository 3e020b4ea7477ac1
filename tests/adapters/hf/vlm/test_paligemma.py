"""PaliGemma's prefix, whose tokens see each other in both directions; the rest: tests/conformance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenzoo_adapters.hf.vlm.prompt_hooks import PromptHooks

import tokenzoo
from tests.adapters.hf.models import IMAGE
from tests.adapters.hf.vlm import paligemma as pg
from tests.adapters.hf.vlm.calls import FLOWER, TALL, WIDE, ends
from tests.adapters.models import gap
from tokenzoo import Recipe, Stage, Step
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import FeatureNorm

PROMPTS = ("<image> what is this ?", "<image> <image> what is different here and there ?")
SUFFIX = ("a cat", "a dog and a bird")
TYPES = "token_type_ids"


@pytest.mark.parametrize("text", ["gemma", "gemma2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_all_but_the_suffix_is_the_prefix(text: str, side: str) -> None:
    """Against the bare model's logits and loss of a prompt with the features that are left."""
    model, given = pg.paligemma(text), pg.inputs(PROMPTS, (WIDE, TALL, FLOWER), side, SUFFIX)
    chosen = SelectAssign(TopK(FeatureNorm()), Drop())
    zoo = tokenzoo.build(Recipe(Step(Stage.PROJECTED, Once(), chosen, Identity()), keep=4))

    def embedded(prompt: Any) -> Any:
        embeds = model.get_input_embeddings()(prompt["input_ids"])
        embeds[prompt["input_ids"] == IMAGE] = rows.flatten(0, 1)
        names = ("attention_mask", TYPES, "labels")
        return model(inputs_embeds=embeds, **{name: prompt[name] for name in names})

    with torch.no_grad():
        rows = model.model.get_image_features(given["pixel_values"], return_dict=True).pooler_output
        with zoo.attach(model, trace=True) as attached:
            found, kept = model(**given), attached.record.keep
            # As `forward` shortens a call with labels.
            short = PromptHooks(attached.adapter, attached).shorten(given, pad_left=side == "left")
        rows = rows.gather(1, kept[..., None].expand(-1, -1, rows.shape[2]))
        expected = embedded(short)
        causal = embedded({**short, TYPES: torch.ones_like(short[TYPES])})
    assert torch.equal(short[TYPES].sum(1), given[TYPES].sum(1))
    last = torch.arange(2), ends(short)
    assert gap(found.logits[last], expected.logits[last]) <= 1e-5
    assert gap(found.loss, expected.loss) <= 1e-5
    assert gap(causal.logits[last], expected.logits[last]) > 1e-3  # the prefix matters
