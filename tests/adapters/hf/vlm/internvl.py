"""A small InternVL of transformers and its real processor: tiles of 56 pixels, of 4 x 4 tokens each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import transformers

from tests.adapters.hf.models import _LLM, IMAGE, WORDS, _tokenizer, answering
from tests.adapters.hf.vlm.processed import processed

SIDE, PATCH, TOKENS = 56, 7, 16
"""Pixels along a tile and a patch; tokens of a tile: 8 x 8 patches, 2 x 2 of them a token."""


def internvl(**overrides: Any) -> Any:
    """InternVL, small: 5 blocks with a CLS token and LayerScale, pixel shuffle of 2 x 2, and a Qwen2.

    Overrides are of the configuration; `vision` and `text` are dicts for its two parts.
    """
    overrides = dict(overrides)
    vision = {
        "hidden_size": 48,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "image_size": [SIDE, SIDE],
        "patch_size": [PATCH, PATCH],
        **overrides.pop("vision", {}),
    }
    text = {"model_type": "qwen2", **_LLM, **overrides.pop("text", {})}
    config = transformers.InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        image_seq_length=TOKENS,
        tie_word_embeddings=False,
        **overrides,
    )
    return answering(transformers.InternVLForConditionalGeneration(config))


@cache
def processor(padding_side: str) -> Any:
    """The real processor; an image is up to 4 tiles, and of several a thumbnail."""
    tokenizer = _tokenizer(padding_side)
    names = {"start_image_token": "see", "end_image_token": ".", "context_image_token": "<image>"}
    for name, word in names.items():
        setattr(tokenizer, name, word)
        setattr(tokenizer, f"{name}_id", WORDS.index(word))
    size = {"height": SIDE, "width": SIDE}
    tiles = {"crop_to_patches": True, "min_patches": 1, "max_patches": 4}
    return transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size=size, **tiles),
        tokenizer,
        transformers.InternVLVideoProcessor(size=size),
        image_seq_length=TOKENS,
    )


def inputs(
    prompts: str | Sequence[str], images: Sequence[Any] = (), padding_side: str = "left"
) -> Any:
    """What the processor returns for these prompts, with the images of all, in order."""
    return processed(processor(padding_side), prompts, images)
