"""GLM-4.1V, 4.5V and 4.6V: packed, a convolution joins 2 x 2 patches, videos in the placeholders of images.

A call has images or videos: of both, the model itself fills the same placeholders twice.
"""

from __future__ import annotations

from dataclasses import replace

from tokenzoo_adapters.hf.vlm.models.qwen2_vl import QWEN2_VL
from tokenzoo_adapters.hf.vlm.models.qwen3_vl import IMAGES, VIDEOS
from tokenzoo_adapters.hf.vlm.spans import per_slice

GLM4V = replace(
    QWEN2_VL,
    folder="glm4v",
    whole="Glm4vForConditionalGeneration",
    bare="Glm4vModel",
    modalities=(IMAGES, replace(VIDEOS, placeholder="image_token_id", spans=per_slice)),
)
GLM46V = replace(GLM4V, folder="glm46v", whole="Glm46VForConditionalGeneration", bare="Glm46VModel")
GLM4V_MOE = replace(
    GLM4V,
    folder="glm4v_moe",
    whole="Glm4vMoeForConditionalGeneration",
    bare="Glm4vMoeModel",
)
