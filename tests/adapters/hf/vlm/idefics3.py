"""A small Idefics3 and a small SmolVLM of transformers: tiles of 56 pixels, of 4 x 4 tokens each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import transformers

from tests.adapters.hf.models import _LLM, _SIZES, IMAGE, SIDE, WORDS, _tokenizer, answering

TOKENS, MARKS = 16, 8
"""Tokens of a tile: 8 x 8 patches, 2 x 2 of them a token; marks that the processor adds to the words."""


def idefics3(kind: str = "Idefics3", **overrides: Any) -> Any:
    """Idefics3, small: 5 blocks, pixel shuffle of 2 x 2, and a Llama.

    Overrides are of the configuration; `vision` and `text` are dicts for its two parts.
    """
    overrides = dict(overrides)
    text = {**_LLM, "vocab_size": len(WORDS) + MARKS, **overrides.pop("text", {})}
    config = getattr(transformers, f"{kind}Config")(
        vision_config={**_SIZES, **overrides.pop("vision", {})},
        text_config={"model_type": "llama", **text},
        image_token_id=IMAGE,
        scale_factor=2,
        **overrides,
    )
    return answering(getattr(transformers, f"{kind}ForConditionalGeneration")(config))


def smolvlm(**overrides: Any) -> Any:
    """SmolVLM, which differs in its class."""
    return idefics3("SmolVLM", **overrides)


def images(kind: str = "Idefics3") -> Any:
    """The real processor of images: up to 2 x 2 tiles, and the whole image as another one."""
    sizes = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
    return getattr(transformers, f"{kind}ImageProcessor")(**sizes)


@cache
def processor(padding_side: str) -> Any:
    """The real processor; of SmolVLM's it differs in videos."""
    return transformers.Idefics3Processor(images(), _tokenizer(padding_side), image_seq_len=TOKENS)


def inputs(
    prompts: Sequence[str], images: Sequence[Sequence[Any]] = (), padding_side: str = "left"
) -> Any:
    """What the processor returns for these prompts, with the images of each."""
    given = {"images": [list(some) for some in images]} if any(images) else {}
    return processor(padding_side)(text=list(prompts), padding=True, return_tensors="pt", **given)
