"""LFM2-VL: images of any size as flat patches (SigLIP 2), pixel unshuffle of 2 x 2 patches, tiles.

Its language model has short convolutions: no layer of it can have fewer tokens than the one before, and no
padding may come between the tokens of a prompt.
"""

from __future__ import annotations

from typing import Any

from tokenzoo_adapters.hf.vlm.shapes import one_size_a_run, per_shape
from tokenzoo_adapters.hf.vlm.spec import Modality, VisionLanguageSpec


def unshuffled(config: Any) -> int:
    """Patches that the projector makes one token of."""
    return int(config.downsample_factor) ** 2


LFM2_VL = VisionLanguageSpec(
    folder="lfm2_vl",
    whole="Lfm2VlForConditionalGeneration",
    bare="Lfm2VlModel",
    modalities=(Modality("pixel_values", "image_token_id", per_shape, sizes="spatial_shapes"),),
    group=unshuffled,
    assembly=(one_size_a_run,),
    gaps=False,
)
