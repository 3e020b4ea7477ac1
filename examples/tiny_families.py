"""Small models of several families, of random weights, and their processors, as in `tiny_llava`."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tiny_llava import CHAT, TEXT, made_tokenizer

SIDE, PATCH = 112, 14
SPECIAL = ("<pad>", "<unk>", "<image>", "<video>", "<start>", "<end>")
WORDS = (*SPECIAL, *TEXT.split())
MOLMO = (
    *("<im_low>", "<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>"),
    "<frame_end>",
)
VISION: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
}
LANGUAGE: dict[str, Any] = {
    **VISION,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": len(WORDS) + 1152,  # PaliGemma's processor adds marks of places and shapes
    "pad_token_id": 0,
}


def make(name: str) -> tuple[Any, Any]:
    """A model in eval mode and its processor.

    Args:
        name: of a checkpoint, whose first letters say which model (`MAKERS`).
    """
    torch.manual_seed(0)
    maker = next(make for prefix, make in MAKERS.items() if name.startswith(prefix))
    config, kind, processor = maker()
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        model.lm_head.weight[: len(SPECIAL)] = 0  # so that it answers in words
        model.lm_head.weight[len(WORDS) :] = 0
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None  # it would not know where to end
    return model, processor


def _ids(tokenizer: Any, **words: str) -> Any:
    """Give a tokenizer the marks that a processor asks it for."""
    for name, word in words.items():
        setattr(tokenizer, name, word)
        setattr(tokenizer, f"{name}_id", WORDS.index(word))
    return tokenizer


def _internvl() -> tuple[Any, str, Any]:
    config = transformers.InternVLConfig(
        vision_config={**VISION, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
        text_config={"model_type": "qwen2", **LANGUAGE},
        image_token_id=WORDS.index("<image>"),
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    marks = {"start_image_token": "<start>", "end_image_token": "<end>"}
    tokenizer = _ids(made_tokenizer(WORDS), **marks, context_image_token="<image>")
    size = {"height": SIDE, "width": SIDE}
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=True, max_patches=4),
        tokenizer,
        transformers.InternVLVideoProcessor(size=size),
        image_seq_length=16,
        chat_template=CHAT,
    )
    return config, "InternVL", processor


def _paligemma() -> tuple[Any, str, Any]:
    tower = {"model_type": "siglip_vision_model", "image_size": SIDE, "patch_size": PATCH}
    config = transformers.PaliGemmaConfig(
        vision_config={**VISION, **tower, "vision_use_head": False},
        text_config={"model_type": "gemma2", **LANGUAGE, "query_pre_attn_scalar": 16},
        image_token_index=WORDS.index("<image>"),
        projection_dim=64,
        tie_word_embeddings=False,
    )
    images = transformers.SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = 64
    tokenizer = made_tokenizer(WORDS, bos_token="<start>")
    processor = transformers.PaliGemmaProcessor(images, tokenizer, chat_template=CHAT)
    return config, "PaliGemma", processor


def _minicpm() -> tuple[Any, str, Any]:
    config = transformers.MiniCPMV4_6Config(
        vision_config={**VISION, "image_size": SIDE, "patch_size": PATCH},
        text_config={"model_type": "qwen2", **LANGUAGE},
        image_token_id=WORDS.index("<image>"),
        video_token_id=WORDS.index("<video>"),
        insert_layer_id=2,
        tie_word_embeddings=False,
    )
    marks = {f"{name}_start_token": "<start>" for name in ("image", "slice", "image_id")}
    marks |= {f"{name}_end_token": "<end>" for name in ("image", "slice", "image_id")}
    tokenizer = _ids(made_tokenizer(WORDS), **marks, image_token="<image>", video_token="<video>")
    sizes = {"scale_resolution": 2 * SIDE, "patch_size": PATCH, "max_slice_nums": 4}
    processor = transformers.MiniCPMV4_6Processor(
        transformers.MiniCPMV4_6ImageProcessorPil(**sizes),
        transformers.MiniCPMV4_6VideoProcessor(**sizes),
        tokenizer,
        chat_template=CHAT,
    )
    return config, "MiniCPMV4_6", processor


def _gemma3() -> tuple[Any, str, Any]:
    tower = {"model_type": "siglip_vision_model", "image_size": SIDE, "patch_size": PATCH}
    config = transformers.Gemma3Config(
        vision_config={**VISION, **tower, "vision_use_head": False},
        text_config={**LANGUAGE, "query_pre_attn_scalar": 16, "sliding_window": 64},
        image_token_index=WORDS.index("<image>"),
        mm_tokens_per_image=16,
        tie_word_embeddings=False,
    )
    marks = {"boi_token": "<start>", "eoi_token": "<end>", "image_token": "<image>"}
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE}),
        _ids(made_tokenizer(WORDS), **marks),
        image_seq_length=16,
        chat_template=CHAT.replace("<{{ part.type }}>", "<start>"),
    )
    return config, "Gemma3", processor


def _smolvlm() -> tuple[Any, str, Any]:
    config = transformers.SmolVLMConfig(
        vision_config={**VISION, "image_size": SIDE, "patch_size": PATCH},
        text_config={"model_type": "llama", **LANGUAGE},
        image_token_id=WORDS.index("<image>"),
        scale_factor=2,
    )
    sizes = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
    processor = (
        transformers.Idefics3Processor(  # SmolVLM's differs in videos, and needs a package for them
            transformers.SmolVLMImageProcessor(**sizes),
            made_tokenizer(WORDS),
            image_seq_len=16,
            chat_template=CHAT,
        )
    )
    return config, "SmolVLM", processor


def _lfm2_vl() -> tuple[Any, str, Any]:
    tower = {"num_patches": (SIDE // PATCH) ** 2, "patch_size": PATCH, "vision_use_head": False}
    layers = {"layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False}
    config = transformers.Lfm2VlConfig(
        vision_config={"model_type": "siglip2_vision_model", **VISION, **tower},
        text_config={"model_type": "lfm2", **LANGUAGE, **layers},
        image_token_id=WORDS.index("<image>"),
        projector_hidden_size=64,
        tie_word_embeddings=False,
    )
    images = transformers.Lfm2VlImageProcessor(
        encoder_patch_size=PATCH,
        tile_size=SIDE,
        min_image_tokens=8,
        max_image_tokens=16,
        max_tiles=4,
    )
    processor = transformers.Lfm2VlProcessor(images, made_tokenizer(WORDS), chat_template=CHAT)
    return config, "Lfm2Vl", processor


def _glm4v() -> tuple[Any, str, Any]:
    tower = {"depth": 6, "num_heads": 4, "out_hidden_size": 64, "image_size": SIDE}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = transformers.Glm4vConfig(
        vision_config={"hidden_size": 64, "intermediate_size": 128, **tower, "patch_size": PATCH},
        text_config={**LANGUAGE, "rope_parameters": {**rope, "partial_rotary_factor": 1.0}},
        image_token_id=WORDS.index("<image>"),
        video_token_id=WORDS.index("<video>"),
        tie_word_embeddings=False,
    )
    options = {"patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2}
    options["size"] = {"shortest_edge": 8 * 28**2, "longest_edge": 128 * 28**2}
    processor = transformers.Glm4vProcessor(
        transformers.Glm4vImageProcessor(**options),
        made_tokenizer(WORDS),
        transformers.Glm4vVideoProcessor(**options),
        chat_template=CHAT,
    )
    return config, "Glm4v", processor


def _cosmos3_edge() -> tuple[Any, str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = transformers.Cosmos3EdgeConfig(
        vision_config={**VISION, "patch_size": PATCH, "num_patches": (SIDE // PATCH) ** 2},
        text_config={**LANGUAGE, "rope_parameters": rope},
        projector_hidden_size=128,
        image_token_id=WORDS.index("<image>"),
        video_token_id=WORDS.index("<video>"),
        tie_word_embeddings=False,
    )
    options = {"patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 1}
    options["size"] = {"shortest_edge": 8 * 28**2, "longest_edge": 128 * 28**2}
    marks = {"image_token": "<image>", "video_token": "<video>"}
    processor = transformers.Cosmos3EdgeProcessor(
        transformers.Cosmos3EdgeImageProcessor(**options),
        _ids(made_tokenizer(WORDS), **marks),
        transformers.Cosmos3EdgeVideoProcessor(**options),
        chat_template=CHAT,
    )
    return config, "Cosmos3Edge", processor


def _molmo2() -> tuple[Any, str, Any]:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}
    tower = {**VISION, **heads, "image_size": [SIDE, SIDE], "patch_size": PATCH}
    joins = {"hidden_size": 64, "intermediate_size": 128, "text_hidden_size": 64}
    config = transformers.Molmo2Config(
        vision_config=tower,
        adapter_config={**heads, **joins, "vision_feature_layer": [5, 3]},
        text_config={**LANGUAGE, "additional_vocab_size": 16},
        image_patch_id=WORDS.index("<image>"),
        tie_word_embeddings=False,
    )
    # The processor writes `<im_patch>` for a token of an image, and marks around its rows.
    names = [word.replace("<image>", "<im_patch>") for word in WORDS]
    tokenizer = made_tokenizer((*names, "<image>", *MOLMO), bos_token="<start>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<im_patch>", *MOLMO]})
    sizes = {"size": {"height": SIDE, "width": SIDE}, "patch_size": PATCH}
    processor = transformers.Molmo2Processor(
        transformers.Molmo2ImageProcessor(**sizes, max_crops=4, overlap_margins=[1, 1]),
        transformers.Molmo2VideoProcessor(**sizes, pooling_size=[3, 3]),
        tokenizer,
        chat_template=CHAT,
    )
    return config, "Molmo2", processor


MAKERS = {
    "OpenGVLab/InternVL3": _internvl,
    "google/paligemma2": _paligemma,
    "openbmb/MiniCPM-V": _minicpm,
    "google/gemma-3": _gemma3,
    "HuggingFaceTB/SmolVLM2": _smolvlm,
    "LiquidAI/LFM2-VL": _lfm2_vl,
    "zai-org/GLM-4.1V": _glm4v,
    "allenai/Molmo2": _molmo2,
    "nvidia/Cosmos3-Edge": _cosmos3_edge,
}
