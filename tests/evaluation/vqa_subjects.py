"""A LLaVA of the task `collage-vqa` that is small and knows nothing."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Dinov2Config, Dinov2Model

from tokenzoo.evaluation.vqa import model


def small_llava() -> Any:
    """A tower of 9 narrow blocks for 16 x 16 patches, one of which is not read."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=9, image_size=224, patch_size=14
    )
    vlm = model.untrained(Dinov2Model(config))
    for value in vlm.parameters():
        if value.ndim == 2:
            torch.nn.init.normal_(value, std=value.shape[1] ** -0.5)
    return vlm
