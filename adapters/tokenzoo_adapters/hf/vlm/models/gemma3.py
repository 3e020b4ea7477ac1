"""Gemma 3: SigLIP images of one size, pooled to a square of tokens; crops (pan and scan) are images too.

Prompts come with `token_type_ids`: 1 of the tokens of an image, which see each other in both directions.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

from tokenzoo.adapter import Adapter
from tokenzoo_adapters.hf.vlm.groups import filled_grid
from tokenzoo_adapters.hf.vlm.spans import per_image
from tokenzoo_adapters.hf.vlm.spec import Modality, VisionLanguageSpec


def pooled(config: Any) -> int:
    """Patches that the average pooling makes one token of."""
    return max(1, _patches(config) // isqrt(config.mm_tokens_per_image)) ** 2


def not_a_square(base: Any, tower: Adapter) -> str | None:
    """The pooling would leave patches out, or make another number of tokens than the configuration says."""
    del tower
    config, tokens = base.config, base.config.mm_tokens_per_image
    side = isqrt(tokens)
    if side * side == tokens and _patches(config) % side == 0:
        return None
    return (
        f"has mm_tokens_per_image={tokens} and {_patches(config)} x {_patches(config)} patches: an image "
        "must be pooled to a square of tokens without a rest. What works on it: zoo.reduce(features), "
        "after the projector"
    )


def _patches(config: Any) -> int:
    """Patches along an image."""
    return int(config.vision_config.image_size) // int(config.vision_config.patch_size)


GEMMA3 = VisionLanguageSpec(
    folder="gemma3",
    whole="Gemma3ForConditionalGeneration",
    bare="Gemma3Model",
    modalities=(Modality("pixel_values", "image_token_id", per_image),),
    group=pooled,
    assembly=(filled_grid,),
    refuse=not_a_square,
)
