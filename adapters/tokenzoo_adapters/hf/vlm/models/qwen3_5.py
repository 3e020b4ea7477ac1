"""Qwen3.5 and its MoE: as Qwen3-VL without deepstack; most decoder layers have linear attention."""

from __future__ import annotations

from dataclasses import replace

from tokenzoo_adapters.hf.vlm.models.qwen3_vl import QWEN3_VL

QWEN3_5 = replace(
    QWEN3_VL,
    folder="qwen3_5",
    whole="Qwen3_5ForConditionalGeneration",
    bare="Qwen3_5Model",
    gaps=False,  # the state of linear attention fades with each column, padding too
    streams=(),
)
QWEN3_5_MOE = replace(
    QWEN3_5,
    folder="qwen3_5_moe",
    whole="Qwen3_5MoeForConditionalGeneration",
    bare="Qwen3_5MoeModel",
)
