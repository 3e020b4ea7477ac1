"""Qwen2.5-VL: as Qwen2-VL, with windows in most blocks of its tower."""

from __future__ import annotations

from dataclasses import replace

from tokenzoo_adapters.hf.vlm.models.qwen2_vl import QWEN2_VL

QWEN2_5_VL = replace(
    QWEN2_VL,
    folder="qwen2_5_vl",
    whole="Qwen2_5_VLForConditionalGeneration",
    bare="Qwen2_5_VLModel",
)
