"""Configurations of multimodal models, from the sizes of a tower and of a language model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenzoo._core.needs import need

Config = dict[str, Any]

LLAVA = {"image_token_id": 32000}
ONEVISION = {"image_token_id": 151646, "video_token_id": 151647}
QWEN = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 5,
    "vision_end_token_id": 6,
}


def library() -> Any:
    """Import transformers.

    Raises:
        MissingDependencyError: it is not installed.
    """
    return need("transformers", "transformers")


def _llava(vision: Config, text: Config) -> Any:
    transformers = library()
    return transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision),
        text_config=transformers.LlamaConfig(**text, max_position_embeddings=32768),
        tie_word_embeddings=text["tie_word_embeddings"],
        vision_feature_layer=-1,  # of all blocks that are made: the public one's last but one
        **LLAVA,
    )


def _onevision(vision: Config, text: Config) -> Any:
    transformers = library()
    return transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**vision, vision_use_head=False),
        text_config=transformers.Qwen2Config(**text, max_position_embeddings=32768),
        tie_word_embeddings=text["tie_word_embeddings"],
        **ONEVISION,
    )


def _qwen(vision: Config, text: Config) -> Any:
    transformers = library()
    newer = "fullatt_block_indexes" in vision
    width = text["hidden_size"]
    vision = {**vision, "out_hidden_size" if newer else "hidden_size": width}
    pairs = width // text["num_attention_heads"] // 2
    axes = [pairs // 4, (pairs - pairs // 4) // 2]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [*axes, pairs - sum(axes)]}
    kind = transformers.Qwen2_5_VLConfig if newer else transformers.Qwen2VLConfig
    return kind(
        vision_config=vision,
        text_config={**text, "rope_parameters": rope, "max_position_embeddings": 32768},
        tie_word_embeddings=text["tie_word_embeddings"],
        **QWEN,
    )


def _internvl(vision: Config, text: Config) -> Any:
    transformers = library()
    return transformers.InternVLConfig(
        vision_config=vision,
        text_config={"model_type": "qwen2", **text, "max_position_embeddings": 32768},
        tie_word_embeddings=text["tie_word_embeddings"],
        image_token_id=151667,
    )


def _paligemma(vision: Config, text: Config) -> Any:
    transformers = library()
    width = text["hidden_size"]
    return transformers.PaliGemmaConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            **vision,
            "vision_use_head": False,
            "projection_dim": width,
        },
        text_config={"model_type": "gemma2", **text},
        tie_word_embeddings=text["tie_word_embeddings"],
        projection_dim=width,
        image_token_index=2048,  # a word here: the public one is far beyond a tiny vocabulary
    )


def _qwen3(vision: Config, text: Config) -> Any:
    pairs = text.get("head_dim", text["hidden_size"] // text["num_attention_heads"]) // 2
    first = pairs * 3 // 8
    axes = [first, (pairs - first + 1) // 2, (pairs - first) // 2]
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": axes}
    head = {"head_dim": 2 * pairs, "rope_parameters": rope, "max_position_embeddings": 32768}
    return library().Qwen3VLConfig(
        vision_config={**vision, "out_hidden_size": text["hidden_size"]},
        text_config={**text, **head},
        tie_word_embeddings=text["tie_word_embeddings"],
        **QWEN,
    )


def _gemma3(vision: Config, text: Config) -> Any:
    return library().Gemma3Config(
        vision_config={"model_type": "siglip_vision_model", **vision, "vision_use_head": False},
        text_config=text,
        tie_word_embeddings=text["tie_word_embeddings"],
        mm_tokens_per_image=(vision["image_size"] // vision["patch_size"]) ** 2 // 16,
        image_token_index=2048,  # as of PaliGemma
    )


def _smolvlm(vision: Config, text: Config) -> Any:
    return library().SmolVLMConfig(
        vision_config=vision,
        text_config={"model_type": "llama", **text, "max_position_embeddings": 32768},
        tie_word_embeddings=text["tie_word_embeddings"],
        image_token_id=49190,
        scale_factor=3,
    )


KINDS: dict[str, Callable[..., Any]] = {
    "llava": _llava,
    "onevision": _onevision,
    "qwen2": _qwen,
    "qwen2_5": _qwen,
    "internvl": _internvl,
    "paligemma": _paligemma,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
    "smolvlm": _smolvlm,
}
"""From sizes of a tower and of a language model, the configuration."""
