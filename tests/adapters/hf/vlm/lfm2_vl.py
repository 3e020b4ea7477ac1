"""A small LFM2-VL of transformers and its real processor: images of 12 to 16 tokens, or tiles of 16."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import transformers

from tests.adapters.hf.models import _LLM, IMAGE, PATCH, SIDE, _tokenizer, answering

TOKENS = 16
"""Most tokens of an image or tile: 8 x 8 patches, 2 x 2 of them a token."""


def lfm2_vl(**overrides: Any) -> Any:
    """LFM2-VL, small: a SigLIP 2 of 5 blocks, pixel unshuffle of 2 x 2, and two convolutions in the text.

    Overrides are of the configuration; `vision` and `text` are dicts for its two parts.
    """
    overrides = dict(overrides)
    vision = {
        "hidden_size": 48,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "num_patches": (SIDE // PATCH) ** 2,
        "patch_size": PATCH,
        "vision_use_head": False,
        **overrides.pop("vision", {}),
    }
    text = {
        **_LLM,
        "layer_types": ["conv", "full_attention"] * 2,
        "block_auto_adjust_ff_dim": False,
        **overrides.pop("text", {}),
    }
    config = transformers.Lfm2VlConfig(
        vision_config={"model_type": "siglip2_vision_model", **vision},
        text_config={"model_type": "lfm2", **text},
        image_token_id=IMAGE,
        projector_hidden_size=64,
        tie_word_embeddings=False,
        **overrides,
    )
    return answering(transformers.Lfm2VlForConditionalGeneration(config))


@cache
def processor(padding_side: str) -> Any:
    """The real processor; an image of twice the tokens of a tile is cut into tiles, with a thumbnail."""
    images = transformers.Lfm2VlImageProcessor(
        encoder_patch_size=PATCH,
        tile_size=SIDE,
        min_image_tokens=8,
        max_image_tokens=TOKENS,
        max_tiles=3,
    )
    return transformers.Lfm2VlProcessor(images, _tokenizer(padding_side))


def inputs(
    prompts: Sequence[str], images: Sequence[Sequence[Any]] = (), padding_side: str = "left"
) -> Any:
    """What the processor returns for these prompts, with the images of each."""
    given = {"images": [list(some) for some in images]} if any(images) else {}
    return processor(padding_side)(text=list(prompts), padding=True, return_tensors="pt", **given)
