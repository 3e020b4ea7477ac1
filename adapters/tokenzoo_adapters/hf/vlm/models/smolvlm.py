"""Idefics3, SmolVLM and SmolVLM 2: tiles and a small whole image, pixel shuffle in the connector.

The frames of a video come as tiles, too. A tile that is partly padding is refused by the tower; processors
make none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenzoo_adapters.hf.vlm.groups import folded_groups
from tokenzoo_adapters.hf.vlm.spans import per_tile
from tokenzoo_adapters.hf.vlm.spec import Modality, VisionLanguageSpec


def shuffled(config: Any) -> int:
    """Patches that the connector makes one token of."""
    return int(config.scale_factor) ** 2


IDEFICS3 = VisionLanguageSpec(
    folder="idefics3",
    whole="Idefics3ForConditionalGeneration",
    bare="Idefics3Model",
    modalities=(Modality("pixel_values", "image_token_id", per_tile),),
    tower="vision_model",
    projector="connector",
    language="text_model",
    group=shuffled,
    assembly=(folded_groups,),
)

SMOLVLM = replace(
    IDEFICS3,
    folder="smolvlm",
    whole="SmolVLMForConditionalGeneration",
    bare="SmolVLMModel",
)
