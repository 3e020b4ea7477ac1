"""A small Cosmos3-Edge of transformers and its real processor; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import transformers

from tests.adapters.hf.models import IMAGE, VIDEO, WORDS, _tokenizer, answering
from tests.adapters.hf.vlm.processed import processed
from tests.adapters.hf.vlm.qwen import _TEXT, GROUP, PATCH, SIZES

KNOWN = hasattr(transformers, "Cosmos3EdgeConfig")
"""Whether the installed version has it."""

_VISION: dict[str, Any] = {
    "num_hidden_layers": 5,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "patch_size": PATCH,
    "num_patches": 36,  # its learned positions: 6 x 6
}


def cosmos3_edge(**overrides: Any) -> Any:
    """Cosmos3-Edge, small: 5 blocks, each with full attention within an image or frame; M-RoPE."""
    overrides = dict(overrides)
    config = transformers.Cosmos3EdgeConfig(
        vision_config={**_VISION, **overrides.pop("vision", {})},
        text_config={**_TEXT, "head_dim": 16, **overrides.pop("text", {})},
        projector_hidden_size=96,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=WORDS.index("see"),
        vision_end_token_id=WORDS.index("."),
        **overrides,
    )
    return answering(transformers.Cosmos3EdgeForConditionalGeneration(config))


@cache
def processor(padding_side: str) -> Any:
    """The real processor, for the sizes here; a slice of a video is one frame."""
    options = {"patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 1}
    film = {"shortest_edge": GROUP**2 * 4, "longest_edge": GROUP**2 * 80}
    return transformers.Cosmos3EdgeProcessor(
        transformers.Cosmos3EdgeImageProcessor(size=SIZES, **options),
        _tokenizer(padding_side),
        transformers.Cosmos3EdgeVideoProcessor(size=film, do_sample_frames=False, **options),
    )


def inputs(
    prompts: str | Sequence[str],
    images: Sequence[Any] = (),
    videos: Sequence[Any] | None = None,
    padding_side: str = "left",
) -> Any:
    """What the processor returns for these prompts, with the images or videos of all, in order."""
    # It writes the times of frames into the prompt, and reads them off what it returns.
    options: dict[str, Any] = {"return_mm_token_type_ids": True}
    if videos:
        options["videos_kwargs"] = {"return_metadata": True}
    found = processed(processor(padding_side), prompts, images, videos, **options)
    found.pop("video_metadata", None)
    return found
