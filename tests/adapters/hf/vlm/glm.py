"""Small GLM-4.1V, 4.5V and 4.6V models of transformers and their real processor; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import transformers

from tests.adapters.hf.models import IMAGE, VIDEO, WORDS, _tokenizer, answering
from tests.adapters.hf.vlm.processed import processed
from tests.adapters.hf.vlm.qwen import _TEXT, GROUP, PATCH, SIZES

FILM = "<|begin_of_video|> <video> <|end_of_video|>"
"""A video in a prompt: its frames have the placeholders of images."""

_VISION: dict[str, Any] = {
    "depth": 5,
    "hidden_size": 48,
    "num_heads": 4,
    "intermediate_size": 96,
    "out_hidden_size": 64,
    "patch_size": PATCH,
    "image_size": 6 * PATCH,  # its learned positions
}
_EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}


def glm4v(**overrides: Any) -> Any:
    """GLM-4.1V, small: 5 blocks, each with full attention within an image or frame; M-RoPE."""
    return _made("Glm4v", overrides, {})


def glm4v_moe(**overrides: Any) -> Any:
    """GLM-4.5V, small: as `glm4v`, with two of four experts a token."""
    return _made("Glm4vMoe", overrides, _EXPERTS)


def glm46v(**overrides: Any) -> Any:
    """GLM-4.6V, small: the tower and the language model of `glm4v` in another class."""
    return _made("Glm46V", overrides, {})


def _made(name: str, overrides: dict[str, Any], more: dict[str, Any]) -> Any:
    overrides = dict(overrides)
    rope = {**_TEXT["rope_parameters"], "partial_rotary_factor": 1.0}
    text = {**_TEXT, "rope_parameters": rope, "vocab_size": len(WORDS) + 2, **more}
    config = getattr(transformers, f"{name}Config")(
        vision_config={**_VISION, **overrides.pop("vision", {})},
        text_config={**text, **overrides.pop("text", {})},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        tie_word_embeddings=False,
        **overrides,
    )
    return answering(getattr(transformers, f"{name}ForConditionalGeneration")(config))


@cache
def processor(padding_side: str) -> Any:
    """The real processor, for the sizes here."""
    options = {"patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2}
    # It counts the pixels of an image twice: as of two frames.
    size = {"shortest_edge": 2 * SIZES["shortest_edge"], "longest_edge": 2 * SIZES["longest_edge"]}
    film = {"shortest_edge": GROUP**2 * 4, "longest_edge": GROUP**2 * 80}
    tokenizer = _tokenizer(padding_side)
    tokenizer.add_tokens(["<|begin_of_video|>", "<|end_of_video|>"], special_tokens=True)
    return transformers.Glm4vProcessor(
        transformers.Glm4vImageProcessor(size=size, **options),
        tokenizer,
        transformers.Glm4vVideoProcessor(size=film, do_sample_frames=False, **options),
    )


def inputs(
    prompts: str | Sequence[str],
    images: Sequence[Any] = (),
    videos: Sequence[Any] | None = None,
    padding_side: str = "left",
) -> Any:
    """What the processor returns for these prompts, with the images or videos of all, in order."""
    return processed(processor(padding_side), prompts, images, videos)
