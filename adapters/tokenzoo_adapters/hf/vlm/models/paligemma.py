"""PaliGemma and PaliGemma 2: one SigLIP image of one size, whose last hidden state a linear projector maps.

Prompts come with `token_type_ids`: 0 of the images and of the words that see each other in both directions.
"""

from __future__ import annotations

from tokenzoo_adapters.hf.vlm.spans import per_image
from tokenzoo_adapters.hf.vlm.spec import Modality, VisionLanguageSpec

PALIGEMMA = VisionLanguageSpec(
    folder="paligemma",
    whole="PaliGemmaForConditionalGeneration",
    bare="PaliGemmaModel",
    modalities=(Modality("pixel_values", "image_token_id", per_image),),
    first_position=1,
)
