"""A small Molmo 2 of transformers and its real processor: crops of 56 pixels, of 4 x 4 tokens each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.adapters.hf.models import _LLM, BOS, IMAGE, WORDS, answering
from tests.adapters.hf.vlm.processed import processed

SIDE, PATCH = 56, 7
MARKS = ("<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>", "<frame_end>")
NAMES = (*WORDS[:IMAGE], "<im_patch>", *WORDS[IMAGE + 1 :], "<image>", "<im_low>", *MARKS)
"""The processor writes `<im_patch>` for an image, and marks around its rows."""


def molmo2(**overrides: Any) -> Any:
    """Molmo 2, small: 4 blocks, of which two are read, and its own language model.

    Overrides are of the configuration; `vision` and `text` are dicts for its two parts.
    """
    overrides = dict(overrides)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12}
    vision = {
        **heads,
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "intermediate_size": 96,
        "image_size": [SIDE, SIDE],
        "patch_size": PATCH,
        **overrides.pop("vision", {}),
    }
    adapter = {**heads, "hidden_size": 48, "intermediate_size": 96, "text_hidden_size": 64}
    text = {**_LLM, "vocab_size": len(NAMES), "additional_vocab_size": 4, "head_dim": 16}
    config = transformers.Molmo2Config(
        vision_config=vision,
        adapter_config={**adapter, "vision_feature_layer": [3, 1]},
        text_config={**text, **overrides.pop("text", {})},
        image_patch_id=IMAGE,
        tie_word_embeddings=False,
        **overrides,
    )
    return answering(transformers.Molmo2ForConditionalGeneration(config))


@cache
def processor(padding_side: str) -> Any:
    """The real processor; an image is a whole view and up to 4 crops that overlap by a patch."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(NAMES)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    words.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A $B", special_tokens=[("<s>", BOS)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        **special,
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
        padding_side=padding_side,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<im_patch>", "<im_low>", *MARKS]})
    sizes = {"size": {"height": SIDE, "width": SIDE}, "patch_size": PATCH}
    return transformers.Molmo2Processor(
        transformers.Molmo2ImageProcessor(**sizes, max_crops=4, overlap_margins=[1, 1]),
        transformers.Molmo2VideoProcessor(**sizes, do_sample_frames=False, pooling_size=[3, 3]),
        tokenizer,
    )


def inputs(
    prompts: str | Sequence[str],
    images: Sequence[Any] = (),
    videos: Sequence[Any] | None = None,
    padding_side: str = "left",
) -> Any:
    """What the processor returns for these prompts, with the images and videos of all, in order."""
    return processed(processor(padding_side), prompts, images, videos)
