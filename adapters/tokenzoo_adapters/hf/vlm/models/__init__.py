"""The vision-language models that are followed: one file a family, one spec each."""

from __future__ import annotations

from tokenzoo_adapters.hf.vlm.models.cosmos3_edge import COSMOS3_EDGE
from tokenzoo_adapters.hf.vlm.models.gemma3 import GEMMA3
from tokenzoo_adapters.hf.vlm.models.glm4v import GLM4V, GLM4V_MOE, GLM46V
from tokenzoo_adapters.hf.vlm.models.internvl import INTERNVL
from tokenzoo_adapters.hf.vlm.models.lfm2_vl import LFM2_VL
from tokenzoo_adapters.hf.vlm.models.llava import LLAVA
from tokenzoo_adapters.hf.vlm.models.llava_next import LLAVA_NEXT
from tokenzoo_adapters.hf.vlm.models.llava_onevision import LLAVA_ONEVISION
from tokenzoo_adapters.hf.vlm.models.minicpmv4_6 import MINICPMV4_6
from tokenzoo_adapters.hf.vlm.models.molmo2 import MOLMO2
from tokenzoo_adapters.hf.vlm.models.paligemma import PALIGEMMA
from tokenzoo_adapters.hf.vlm.models.qwen2_5_vl import QWEN2_5_VL
from tokenzoo_adapters.hf.vlm.models.qwen2_vl import QWEN2_VL
from tokenzoo_adapters.hf.vlm.models.qwen3_5 import QWEN3_5, QWEN3_5_MOE
from tokenzoo_adapters.hf.vlm.models.qwen3_vl import QWEN3_VL, QWEN3_VL_MOE
from tokenzoo_adapters.hf.vlm.models.smolvlm import IDEFICS3, SMOLVLM
from tokenzoo_adapters.hf.vlm.spec import VisionLanguageSpec

SPECS: tuple[VisionLanguageSpec, ...] = (
    LLAVA,
    LLAVA_NEXT,
    LLAVA_ONEVISION,
    QWEN2_VL,
    QWEN2_5_VL,
    QWEN3_VL,
    QWEN3_VL_MOE,
    QWEN3_5,
    QWEN3_5_MOE,
    GLM4V,
    GLM4V_MOE,
    GLM46V,
    COSMOS3_EDGE,
    INTERNVL,
    PALIGEMMA,
    GEMMA3,
    IDEFICS3,
    SMOLVLM,
    LFM2_VL,
    MINICPMV4_6,
    MOLMO2,
)
