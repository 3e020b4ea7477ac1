"""LLaVA-NeXT (1.6): a base crop and a grid of crops of each image, packed with newlines."""

from __future__ import annotations

from typing import Any

from tokenzoo.adapter import Adapter
from tokenzoo_adapters.hf.vlm.assembly import any_resolution
from tokenzoo_adapters.hf.vlm.models.llava import LAYERS, STRATEGY, wrong_strategy
from tokenzoo_adapters.hf.vlm.spans import per_size
from tokenzoo_adapters.hf.vlm.spec import Modality, VisionLanguageSpec

IMAGES = Modality("pixel_values", "image_token_id", per_size, sizes="image_sizes")


def not_packable(base: Any, tower: Adapter) -> str | None:
    """As in LLaVA; and only patches can be stitched to a grid."""
    strategy = getattr(base.config, STRATEGY)
    if strategy != "default" and tower.prefix:
        return (
            f"has {STRATEGY}={strategy!r}, with which a CLS token would be packed as if it were a patch: "
            "set it to 'default'"
        )
    return wrong_strategy(base, tower)


LLAVA_NEXT = VisionLanguageSpec(
    folder="llava_next",
    whole="LlavaNextForConditionalGeneration",
    bare="LlavaNextModel",
    modalities=(IMAGES,),
    reads=LAYERS,
    select=STRATEGY,
    settings=(LAYERS, STRATEGY),
    assembly=(any_resolution,),
    refuse=not_packable,
)
