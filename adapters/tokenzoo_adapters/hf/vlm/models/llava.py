"""LLaVA-1.5: one CLIP image of one size, a hidden state of which the CLS token is cut off."""

from __future__ import annotations

from typing import Any

from tokenzoo.adapter import Adapter
from tokenzoo_adapters.hf.vlm.spans import per_image
from tokenzoo_adapters.hf.vlm.spec import Modality, VisionLanguageSpec

LAYERS, STRATEGY = "vision_feature_layer", "vision_feature_select_strategy"


def wrong_strategy(base: Any, tower: Adapter) -> str | None:
    """The strategy "default" cuts one token off, which must be the one that there is."""
    if getattr(base.config, STRATEGY) == "default" and tower.prefix != 1:
        return (
            f"has {STRATEGY}='default', which cuts one CLS token off, and its tower has {tower.prefix} "
            "prefix tokens: set it to 'full'"
        )
    return None


LLAVA = VisionLanguageSpec(
    folder="llava",
    whole="LlavaForConditionalGeneration",
    bare="LlavaModel",
    modalities=(Modality("pixel_values", "image_token_id", per_image),),
    reads=LAYERS,
    select=STRATEGY,
    settings=(LAYERS, STRATEGY),
    refuse=wrong_strategy,
)
