"""A small PaliGemma of transformers and its real processor: images of 56 pixels, of 8 x 8 tokens each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import processors

from tests.adapters.hf.models import (
    _LLM,
    _SIZES,
    IMAGE,
    SIDE,
    SPECIAL,
    WORDS,
    _tokenizer,
    randomise,
)

TOKENS, MARKS = 64, 1024 + 128
"""Tokens of an image; `<loc..>` and `<seg..>` that the processor adds to the words."""

WINDOW = 4
"""Tokens that every second layer of a Gemma 2 sees."""


def paligemma(text: str = "gemma", **overrides: Any) -> Any:
    """PaliGemma, small: a SigLIP of 5 blocks, and a Gemma, or Gemma 2 with every second layer in a window.

    Overrides are of the configuration; `vision` is a dict for its tower.
    """
    overrides = dict(overrides)
    vision = {**_SIZES, "vision_use_head": False, **overrides.pop("vision", {})}
    language = {**_LLM, "head_dim": 16, "vocab_size": len(WORDS) + MARKS}
    if text == "gemma2":
        language |= {"sliding_window": WINDOW, "query_pre_attn_scalar": 16}
    config = transformers.PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", **vision},
        text_config={"model_type": text, **language},
        **{
            "image_token_index": IMAGE,
            "projection_dim": language["hidden_size"],
            "tie_word_embeddings": False,
            **overrides,
        },
    )
    model = randomise(transformers.PaliGemmaForConditionalGeneration(config)).eval()
    with torch.no_grad():  # logits of 0, so that no answer has a placeholder or an end in it
        model.lm_head.weight[: len(SPECIAL)] = 0
    generation = model.generation_config
    generation.pad_token_id, generation.eos_token_id = 0, None  # an answer is as long as it may be
    return model


@cache
def processor(padding_side: str) -> Any:
    """The real processor, with a tokenizer that gives a suffix the type 1, as that of Gemma does."""
    tokenizer = _tokenizer(padding_side)
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A $B:1", special_tokens=[]
    )
    images = transformers.SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = TOKENS
    return transformers.PaliGemmaProcessor(images, tokenizer)


def inputs(
    prompts: str | Sequence[str],
    images: Sequence[Any],
    padding_side: str = "left",
    suffix: Sequence[str] | None = None,
) -> Any:
    """What the processor returns for these prompts, each with one `<image>` per image before its words.

    With a suffix, which is what the model is to say of each, there are `labels`.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    given = processor(padding_side)(
        text=prompts,
        images=list(images),
        padding=True,
        return_tensors="pt",
        **({} if suffix is None else {"suffix": list(suffix)}),
    )
    if suffix is None:
        given.pop("labels")  # all of them are -100
    return given
