"""Cosmos3-Edge: SigLIP 2 on packed images, 2 x 2 patches a token, a time before each frame of a video."""

from __future__ import annotations

from dataclasses import replace

from tokenzoo_adapters.hf.vlm.models.qwen2_vl import QWEN2_VL
from tokenzoo_adapters.hf.vlm.models.qwen3_vl import TIMED

COSMOS3_EDGE = replace(
    QWEN2_VL,
    folder="cosmos3_edge",
    whole="Cosmos3EdgeForConditionalGeneration",
    bare="Cosmos3EdgeModel",
    modalities=TIMED,
    projector="projector",
)
