"""The second stages of recipes for clips inside a language model; what is before them needs frames."""

from __future__ import annotations

import pytest
import torch

import tokenzoo
from tests.adapters.hf import models as hf
from tokenzoo import Recipe
from tokenzoo.errors import MissingEvidenceError
from tokenzoo.hooks.attach import find_adapter
from tokenzoo.tools.transformers_loading import inputs


@pytest.mark.parametrize(
    ("name", "left"), [("holitom", 16), ("prunevid", 13), ("flashvid", 12)]
)  # of 32
def test_a_second_stage_shortens_the_prompt(name: str, left: int) -> None:
    model = hf.llava(text={"num_hidden_layers": 4})
    given = inputs(model, find_adapter(model), 2)
    zoo = tokenzoo.build(name, layer=2)
    with tokenzoo.build(Recipe(zoo.recipe.steps[1], keep=0.5)).attach(model) as attached:
        found = model.generate(**given, max_new_tokens=2)
        assert attached.prompts == (left, left)
    assert found.shape[1] == given["input_ids"].shape[1] + 2
    with pytest.raises(MissingEvidenceError, match="needs frames at Stage"):
        zoo.attach(model)
    assert torch.equal(model.generate(**given, max_new_tokens=1)[:, :-1], given["input_ids"])
