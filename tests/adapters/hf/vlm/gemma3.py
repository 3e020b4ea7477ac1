"""A small Gemma 3 of transformers and its real processor: images of 56 pixels, of 4 x 4 tokens each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import transformers

from tests.adapters.hf.models import _LLM, _SIZES, IMAGE, SIDE, WORDS, _tokenizer, answering

TOKENS, WINDOW = 16, 4
"""Tokens of an image, of 2 x 2 patches each; tokens that every second layer sees."""


CROPS = {"min_crop_size": 20, "max_num_crops": 3, "min_ratio_to_activate": 2.0}


def gemma3(**overrides: Any) -> Any:
    """Gemma 3, small: a SigLIP of 5 blocks, and every second layer of the text in a window.

    Overrides are of the configuration; `vision` and `text` are dicts for its two parts.
    """
    overrides = dict(overrides)
    text = {
        **_LLM,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        **overrides.pop("text", {}),
    }
    config = transformers.Gemma3Config(
        vision_config={**_SIZES, "vision_use_head": False, **overrides.pop("vision", {})},
        text_config=text,
        image_token_index=IMAGE,
        tie_word_embeddings=False,
        **{"mm_tokens_per_image": TOKENS, **overrides},
    )
    return answering(transformers.Gemma3ForConditionalGeneration(config))


@cache
def processor(padding_side: str) -> Any:
    """The real processor."""
    tokenizer = _tokenizer(padding_side)
    names = {"boi_token": "gold", "eoi_token": ".", "image_token": "<image>"}
    for name, word in names.items():
        setattr(tokenizer, name, word)
        setattr(tokenizer, f"{name}_id", WORDS.index(word))
    images = transformers.Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE})
    return transformers.Gemma3Processor(images, tokenizer, image_seq_length=TOKENS)


def inputs(
    prompts: Sequence[str], images: Sequence[Sequence[Any]] = (), padding_side: str = "left"
) -> Any:
    """What the processor returns for these prompts, with the images of each, and 3 crops of wide ones."""
    given: dict[str, Any] = {}
    if any(images):
        given = {"images": [list(some) for some in images], "do_pan_and_scan": True}
        given |= {f"pan_and_scan_{name}": value for name, value in CROPS.items()}
    texts = [prompt.replace("<image>", "gold") for prompt in prompts]
    return processor(padding_side)(text=texts, padding=True, return_tensors="pt", **given)
