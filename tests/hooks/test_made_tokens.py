"""Recipes that make new tokens, on models whose attention asks where a token is in the image."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tokenzoo
from tests.adapters.hf.models import pixels, tower
from tests.adapters.hf.vlm.qwen import qwen2_5_vl
from tests.adapters.models import one_thread as one_thread
from tokenzoo import Recipe, Step
from tokenzoo.errors import AttachError
from tokenzoo.matchers import Fuse, SelectAssign, TopK
from tokenzoo.mergers import Fused
from tokenzoo.recipe import Stage
from tokenzoo.schedules import Once
from tokenzoo.scorers import ReceivedAttention


def fusing(stage: Any) -> Recipe:
    step = Step(stage, Once(), SelectAssign(TopK(ReceivedAttention()), Fuse()), Fused())
    return Recipe(step, keep=5)


def test_no_evidence_is_gathered_after_the_last_block() -> None:
    model = tower("dinov3_vit")
    given = pixels(model)
    with tokenzoo.build(fusing(Stage.FEATURES)).attach(model) as attached, torch.inference_mode():
        features = model(**given).last_hidden_state
        assert features.shape[1] == attached.adapter.prefix + 5


def _rotary() -> tuple[Any, Any]:
    return tower("dinov3_vit"), Stage.BLOCK


def _packed() -> tuple[Any, Any]:
    return qwen2_5_vl().model.visual, Stage.FEATURES


@pytest.mark.parametrize("case", [_rotary, _packed])
def test_where_somebody_asks_it_is_an_error(case: Any) -> None:
    model, stage = case()
    with pytest.raises(AttachError, match="makes new tokens"):
        tokenzoo.build(fusing(stage)).attach(model)
    assert not hasattr(model, "_tokenzoo_attached")
