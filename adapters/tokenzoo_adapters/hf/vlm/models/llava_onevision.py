"""LLaVA-OneVision: SigLIP, images as in LLaVA-NeXT, and videos whose frames are pooled."""

from __future__ import annotations

from tokenzoo_adapters.hf.vlm.assembly import any_resolution, unpooled_frames
from tokenzoo_adapters.hf.vlm.models.llava import LAYERS, STRATEGY
from tokenzoo_adapters.hf.vlm.models.llava_next import IMAGES, not_packable
from tokenzoo_adapters.hf.vlm.spans import pooled_frames
from tokenzoo_adapters.hf.vlm.spec import Modality, VisionLanguageSpec

LLAVA_ONEVISION = VisionLanguageSpec(
    folder="llava_onevision",
    whole="LlavaOnevisionForConditionalGeneration",
    bare="LlavaOnevisionModel",
    modalities=(
        IMAGES,
        Modality(
            "pixel_values_videos",
            "video_token_id",
            pooled_frames,
            "get_video_features",
            stacked=True,
        ),
    ),
    reads=LAYERS,
    select=STRATEGY,
    settings=(LAYERS, STRATEGY, "vision_aspect_ratio"),
    assembly=(any_resolution, unpooled_frames),
    refuse=not_packable,
)
