"""MustDrop on a model: windows merge as they enter the second block, words choose in the language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.models import gap
from tokenzoo import Evidence
from tokenzoo.hooks.attach import find_adapter
from tokenzoo.hooks.reduction import Event
from tokenzoo.matchers import MergeWindows
from tokenzoo.tools.transformers_loading import inputs

LAYERS = 16


def logits(model: Any, given: Any) -> Tensor:
    with torch.no_grad():
        return model(**given).logits


def test_windows_merge_as_they_enter_the_second_block_and_words_choose_later() -> None:
    model = hf.llava(vision={"num_hidden_layers": 4}, text={"num_hidden_layers": LAYERS})
    given = inputs(model, find_adapter(model), 2)
    bare = logits(model, given)
    first: list[Tensor] = []
    block = model.model.vision_tower.encoder.layers[0]
    block.register_forward_hook(lambda _, args, out: first.append(out))
    told: list[Event] = []
    with tokenzoo.build("mustdrop").attach(model, on_reduce=told.append) as attached:
        found = logits(model, given)
        plan = attached.plan()
        n, m = plan.tokens, round(plan.tokens * 0.75)
        assert attached.counts == plan.blocks == (n, *(m,) * (len(plan.blocks) - 1))
        assert [layer for layer, _ in plan.layers] == [3, 7, 11, 15]
        assert set(attached.prompts) == {plan.llm}
        assert plan.llm == n // 4
    assert found.shape[1] == bare.shape[1] - (n - m)
    merge = next(event for event in told if event.stage == "block")
    assert merge.block == 1
    assert gap(merge.before.x, first[-1]) <= 1e-6
    side = int(n**0.5)
    seen = Evidence(merge.before.x[:, 1:], mass=torch.ones(2, n), grid=(side, side))
    wanted = MergeWindows(3).match(seen, m).after_prefix(1)
    assert torch.equal(merge.plan.dst, wanted.dst)
    assert (
        gap(merge.after.x, wanted.sum(merge.before.x) / wanted.sum(merge.before.mass)[..., None])
        <= 1e-6
    )
    with tokenzoo.build("mustdrop", keep=1.0).attach(model):
        assert gap(logits(model, given), bare) <= 1e-5
    assert torch.equal(logits(model, given), bare)
