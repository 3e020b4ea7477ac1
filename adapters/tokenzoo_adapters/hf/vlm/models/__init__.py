"""The vision-language models that are followed: one file a family, one spec each."""

from __future__ import annotations

from tokenzoo_adapters.hf.vlm.models.internvl import INTERNVL
from tokenzoo_adapters.hf.vlm.models.llava import LLAVA
from tokenzoo_adapters.hf.vlm.models.llava_next import LLAVA_NEXT
from tokenzoo_adapters.hf.vlm.models.llava_onevision import LLAVA_ONEVISION
from tokenzoo_adapters.hf.vlm.models.minicpmv4_6 import MINICPMV4_6
from tokenzoo_adapters.hf.vlm.models.molmo2 import MOLMO2
from tokenzoo_adapters.hf.vlm.models.paligemma import PALIGEMMA
from tokenzoo_adapters.hf.vlm.models.qwen2_5_vl import QWEN2_5_VL
from tokenzoo_adapters.hf.vlm.models.qwen2_vl import QWEN2_VL
from tokenzoo_adapters.hf.vlm.spec import VisionLanguageSpec

SPECS: tuple[VisionLanguageSpec, ...] = (
    LLAVA,
    LLAVA_NEXT,
    LLAVA_ONEVISION,
    QWEN2_VL,
    QWEN2_5_VL,
    INTERNVL,
    PALIGEMMA,
    MINICPMV4_6,
    MOLMO2,
)
