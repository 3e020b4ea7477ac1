"""Qwen2-VL: packed images of any size, 2 x 2 patches a token, positions with time, row and column."""

from __future__ import annotations

from typing import Any

from tokenzoo_adapters.hf.vlm.assembly import split_by_grid
from tokenzoo_adapters.hf.vlm.spans import per_grid
from tokenzoo_adapters.hf.vlm.spec import Modality, VisionLanguageSpec


def merged(config: Any) -> int:
    """Patches that the tower's merger makes one token of."""
    return int(config.vision_config.spatial_merge_size) ** 2


PACKED = (
    Modality("pixel_values", "image_token_id", per_grid, sizes="image_grid_thw"),
    Modality(
        "pixel_values_videos",
        "video_token_id",
        per_grid,
        features="get_video_features",
        sizes="video_grid_thw",
    ),
)

QWEN2_VL = VisionLanguageSpec(
    folder="qwen2_vl",
    whole="Qwen2VLForConditionalGeneration",
    bare="Qwen2VLModel",
    modalities=PACKED,
    tower="visual",
    projector="visual.merger",
    group=merged,
    assembly=(split_by_grid,),
    positions="mrope",
)
