"""Small Qwen models of transformers with packed towers and their real processors; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.adapters.hf.models import (
    BOS,
    EOS,
    IMAGE,
    PAD,
    VIDEO,
    WORDS,
    _tokenizer,
    answering,
    photos,
    video,
)
from tests.adapters.hf.vlm.processed import processed

PATCH = 7
GROUP = 2 * PATCH  # pixels along one side of a token
SIZES = {"shortest_edge": GROUP**2 * 4, "longest_edge": GROUP**2 * 60}
"""Pixels of an image: from 4 tokens to 60."""

_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": len(WORDS),
    "max_position_embeddings": 4096,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 3, 3],  # of the 8 pairs of a head: time, row, column
    },
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_VISION: dict[str, dict[str, Any]] = {
    "Qwen2VL": {"depth": 5, "embed_dim": 48, "num_heads": 4, "mlp_ratio": 2, "hidden_size": 64},
    "Qwen2_5_VL": {
        "depth": 5,
        "hidden_size": 48,
        "num_heads": 4,
        "intermediate_size": 96,
        "out_hidden_size": 64,
        "window_size": 3 * GROUP,  # 3 x 3 tokens: 5 x 7 of them have ragged windows
        "fullatt_block_indexes": [2, 4],
        "tokens_per_second": 25,
    },
    "Qwen3_5": {
        "depth": 5,
        "hidden_size": 48,
        "num_heads": 4,
        "intermediate_size": 96,
        "out_hidden_size": 64,
        "num_position_embeddings": 36,
    },
    "Qwen3VL": {
        "depth": 5,
        "hidden_size": 48,
        "num_heads": 4,
        "intermediate_size": 96,
        "out_hidden_size": 64,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 2, 3],
    },
}

_VISION["Qwen3VLMoe"] = _VISION["Qwen3VL"]
_VISION["Qwen3_5Moe"] = _VISION["Qwen3_5"]


def qwen2_vl(**overrides: Any) -> Any:
    """Qwen2-VL, small: 5 blocks, every one with full attention within an image, and a Qwen2 with M-RoPE.

    Overrides are of the configuration; `vision` and `text` are dicts for its two parts.
    """
    return _made("Qwen2VL", overrides)


def qwen2_5_vl(**overrides: Any) -> Any:
    """Qwen2.5-VL, small: as `qwen2_vl`, with windows of 3 x 3 tokens in the blocks 0, 1 and 3."""
    return _made("Qwen2_5_VL", overrides)


def qwen3_vl(**overrides: Any) -> Any:
    """Qwen3-VL, small: as `qwen2_vl`, with learned positions, and the blocks 0, 2, 3 in three layers."""
    return _made("Qwen3VL", {**overrides, "text": {"head_dim": 16, **overrides.get("text", {})}})


def qwen3_vl_moe(**overrides: Any) -> Any:
    """Qwen3-VL-MoE, small: as `qwen3_vl`, with two of four experts a token."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    text = {"head_dim": 16, **experts, **overrides.get("text", {})}
    return _made("Qwen3VLMoe", {**overrides, "text": text})


def qwen3_5(kind: str = "Qwen3_5", **overrides: Any) -> Any:
    """Qwen3.5, small: as `qwen3_vl` without deepstack; three of four layers have linear attention."""
    sizes = {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "head_dim": 16}
    rope = {**_TEXT["rope_parameters"], "partial_rotary_factor": 1.0}
    text = {**sizes, **heads, "rope_parameters": rope, **overrides.get("text", {})}
    return _made(kind, {**overrides, "text": text})


def qwen3_5_moe(**overrides: Any) -> Any:
    """Qwen3.5-MoE, small: as `qwen3_5`, with two of four experts a token."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    text = {**experts, "shared_expert_intermediate_size": 32, **overrides.get("text", {})}
    return qwen3_5("Qwen3_5Moe", **{**overrides, "text": text})


def _made(name: str, overrides: dict[str, Any]) -> Any:
    overrides = dict(overrides)
    vision = {"patch_size": PATCH, **_VISION[name], **overrides.pop("vision", {})}
    text = {**_TEXT, **overrides.pop("text", {})}
    config = getattr(transformers, f"{name}Config")(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=WORDS.index("see"),
        vision_end_token_id=WORDS.index("."),
        tie_word_embeddings=False,
        **overrides,
    )
    return answering(getattr(transformers, f"{name}ForConditionalGeneration")(config))


_PROCESSORS = {
    "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
    **dict.fromkeys(
        ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
        ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    ),
}


@cache
def processor(kind: str, padding_side: str = "left") -> Any:
    """The real processor of a model, for the sizes here."""
    options = {"size": SIZES, "patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2}
    frames = {"do_sample_frames": False, "size": {**SIZES, "longest_edge": GROUP**2 * 80}}
    name, videos = _PROCESSORS[kind]
    return getattr(transformers, name)(
        transformers.Qwen2VLImageProcessor(**options),
        _tokenizer(padding_side),
        getattr(transformers, videos)(**{**options, **frames}),
    )


def inputs(
    model: Any,
    prompts: str | Sequence[str],
    images: Sequence[Any] | None = None,
    videos: Sequence[Any] | None = None,
    padding_side: str = "left",
) -> Any:
    """What the model's processor returns, padded; images and videos are those of all prompts, in order.

    Between two of `<image>` and `<video>` of a prompt is a word; a video is `[f, height, width, 3]`.
    """
    made = processor(model.config.model_type, padding_side)
    return processed(made, prompts, images, videos)


def pixels(model: Any, grids: Sequence[Sequence[int]], seed: int = 0) -> dict[str, Tensor]:
    """Random patches of images and videos with these grids (slices, rows and columns), for a tower."""
    config = model.config
    width = config.in_channels * config.temporal_patch_size * config.patch_size**2
    rows = sum(t * h * w for t, h, w in grids)
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(rows, width, generator=generator),
        "grid_thw": torch.tensor(grids),
    }


def batch(model: Any, padding_side: str = "left") -> Any:
    """Three prompts: two images of different size; an image and a video; words alone."""
    _, flower, tall, wide, *_ = photos()
    return inputs(
        model,
        [
            "see <image> and <image> describe the second photo",
            "what is in <image> . and there <video> yellow flower ?",
            "describe the small tree",
        ],
        [tall, wide, flower],
        [video(4)],
        padding_side,
    )


__all__ = ["batch", "inputs", "photos", "pixels", "processor", "qwen2_5_vl", "qwen2_vl", "video"]
