"""A small MiniCPM-V 4.6 of transformers and its real processor: 16 patches of a tile are one token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import transformers

from tests.adapters.hf.models import _LLM, IMAGE, VIDEO, WORDS, _tokenizer, answering
from tests.adapters.hf.vlm.processed import processed

PATCH, TILE = 7, 112
"""Pixels along a patch and, about, a tile: 16 x 16 patches, 4 x 4 tokens."""


def minicpmv4_6(**overrides: Any) -> Any:
    """MiniCPM-V, small: 4 blocks, after the second of which 2 x 2 patches are joined, and a Qwen2.

    Overrides are of the configuration; `vision` and `text` are dicts for its two parts.
    """
    overrides = dict(overrides)
    vision = {
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "image_size": TILE,
        "patch_size": PATCH,
        **overrides.pop("vision", {}),
    }
    config = transformers.MiniCPMV4_6Config(
        vision_config=vision,
        text_config={"model_type": "qwen2", **_LLM, **overrides.pop("text", {})},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        insert_layer_id=1,
        tie_word_embeddings=False,
        **overrides,
    )
    return answering(transformers.MiniCPMV4_6ForConditionalGeneration(config))


@cache
def processor(padding_side: str) -> Any:
    """The real processor; an image is a thumbnail and up to 4 slices, all of one size or another."""
    tokenizer = _tokenizer(padding_side)
    marks = {"image_start": "see", "image_end": ".", "slice_start": "left", "slice_end": "right"}
    marks |= {"image_id_start": "first", "image_id_end": ":"}
    for name, word in marks.items():
        setattr(tokenizer, f"{name}_token", word)
    for name in ("image", "video"):
        setattr(tokenizer, f"{name}_token_id", WORDS.index(f"<{name}>"))
    sizes = {"scale_resolution": TILE, "patch_size": PATCH, "max_slice_nums": 2}
    return transformers.MiniCPMV4_6Processor(
        transformers.MiniCPMV4_6ImageProcessorPil(**sizes),
        transformers.MiniCPMV4_6VideoProcessor(
            **{**sizes, "max_slice_nums": 1}, do_sample_frames=False
        ),
        tokenizer,
    )


def inputs(
    prompts: str | Sequence[str],
    images: Sequence[Any] = (),
    videos: Sequence[Any] | None = None,
    padding_side: str = "left",
) -> Any:
    """What the processor returns for these prompts, with the images and videos of all, in order."""
    made = processor(padding_side)
    return processed(made, prompts, images, videos, padding_side=padding_side)
