"""IPCV as its authors run it: inside of the encoder, and then DART inside of the language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.models import gap
from tokenzoo import Recipe
from tokenzoo.hooks.attach import find_adapter
from tokenzoo.tools.transformers_loading import inputs


def logits(model: Any, given: Any) -> Tensor:
    with torch.no_grad():
        return model(**given).logits


def test_both_stages_together() -> None:
    model = hf.llava(vision={"num_hidden_layers": 6}, text={"num_hidden_layers": 5})
    given = inputs(model, find_adapter(model), 2)
    bare = logits(model, given)
    both = [tokenzoo.build(name).recipe.steps for name in ("ipcv", "dart")]
    with tokenzoo.build("ipcv", keep=0.35).attach(model) as attached:
        alone = logits(model, given)
        assert alone.shape == bare.shape  # the language model reads all tokens
        assert gap(alone, bare) > 1e-3
    with tokenzoo.build(Recipe(*both[0], *both[1], keep=0.35)).attach(model) as attached:
        found = logits(model, given)
        n = attached.plan().tokens
        m = int(n * 0.35 + 0.5)
        assert attached.counts[-1] == m
        assert attached.features == n
        assert set(attached.prompts) == {m} == {attached.plan().llm}
    assert found.shape == bare.shape
    assert gap(found, alone) > 1e-3
    assert torch.equal(logits(model, given), bare)
