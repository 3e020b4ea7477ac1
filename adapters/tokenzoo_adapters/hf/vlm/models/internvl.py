"""InternVL: tiles of one size, a CLS token, pixel shuffle of 2 x 2 patches to one token.

The frames of a video come as tiles, too.
"""

from __future__ import annotations

from typing import Any

from tokenzoo.adapter import Adapter
from tokenzoo_adapters.hf.vlm.groups import folded_groups
from tokenzoo_adapters.hf.vlm.models.llava import LAYERS, STRATEGY, wrong_strategy
from tokenzoo_adapters.hf.vlm.spans import per_image
from tokenzoo_adapters.hf.vlm.spec import Modality, VisionLanguageSpec


def shuffled(config: Any) -> int:
    """Patches that the pixel shuffle makes one token of."""
    return round(1 / config.downsample_ratio) ** 2


def another_layer(base: Any, tower: Adapter) -> str | None:
    """As in LLaVA; and the pixel shuffle takes a square of patches from the tower's end."""
    if getattr(base.config, LAYERS) != -1:
        return (
            f"has {LAYERS}={getattr(base.config, LAYERS)!r}; of InternVL only the last hidden state is "
            "supported: set it to -1"
        )
    if getattr(base.config, STRATEGY) != "default":
        return f"has {STRATEGY}={getattr(base.config, STRATEGY)!r}: set it to 'default'"
    return wrong_strategy(base, tower)


INTERNVL = VisionLanguageSpec(
    folder="internvl",
    whole="InternVLForConditionalGeneration",
    bare="InternVLModel",
    modalities=(Modality("pixel_values", "image_token_id", per_image),),
    group=shuffled,
    select=STRATEGY,
    settings=(LAYERS, STRATEGY),
    assembly=(folded_groups,),
    refuse=another_layer,
)
