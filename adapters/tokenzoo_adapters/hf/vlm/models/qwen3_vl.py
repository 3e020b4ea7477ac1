"""Qwen3-VL and Qwen3-VL-MoE: as Qwen2-VL, with times between the slices of a video, and deepstack."""

from __future__ import annotations

from dataclasses import replace

from tokenzoo_adapters.hf.vlm.models.qwen2_vl import PACKED, QWEN2_VL
from tokenzoo_adapters.hf.vlm.spans import per_slice
from tokenzoo_adapters.hf.vlm.streams import DEEPSTACK

IMAGES, VIDEOS = PACKED
TIMED = (IMAGES, replace(VIDEOS, spans=per_slice))

QWEN3_VL = replace(
    QWEN2_VL,
    folder="qwen3_vl",
    whole="Qwen3VLForConditionalGeneration",
    bare="Qwen3VLModel",
    modalities=TIMED,
    streams=(DEEPSTACK,),
)
QWEN3_VL_MOE = replace(
    QWEN3_VL,
    folder="qwen3_vl_moe",
    whole="Qwen3VLMoeForConditionalGeneration",
    bare="Qwen3VLMoeModel",
)
