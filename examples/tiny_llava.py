"""A LLaVA of random weights and its processor, made in a second: nothing is downloaded, nothing is known.

The examples run with it under `--tiny`. What it answers is nonsense; prompts, tokens and plans are as real
as those of a checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

SIDE, PATCH = 112, 14  # 8 x 8 patches
SPECIAL = ("<pad>", "<unk>", "<image>", "<video>")
TEXT = "a and blue cat describe flower green in is of on red sky temple the user"
WORDS = (*SPECIAL, *TEXT.split())
CHAT = (
    "{% for message in messages %}{{ message.role }} {% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}<{{ part.type }}> {% endif %}"
    "{% endfor %}{% endfor %}"
)


def make(name: str) -> tuple[Any, Any]:
    """A model in eval mode and its processor.

    Args:
        name: of a checkpoint, which says which model; LLaVA-1.5 if it is none of the two others.
    """
    torch.manual_seed(0)
    kind = "LlavaOnevision" if "onevision" in name else "LlavaNext" if "v1.6" in name else "Llava"
    vision: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6}
    vision |= {"num_attention_heads": 4, "image_size": SIDE, "patch_size": PATCH}
    text: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(WORDS)}
    options: dict[str, Any] = {"image_token_id": WORDS.index("<image>")}
    if kind != "Llava":
        options["image_grid_pinpoints"] = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    if kind == "LlavaOnevision":
        options["video_token_id"] = WORDS.index("<video>")
        options["vision_config"] = transformers.SiglipVisionConfig(**vision, vision_use_head=False)
        options["text_config"] = transformers.Qwen2Config(**text, pad_token_id=0)
    else:
        options["vision_config"] = transformers.CLIPVisionConfig(**vision)
        options["text_config"] = transformers.LlamaConfig(**text, pad_token_id=0)
    config = getattr(transformers, f"{kind}Config")(**options)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        model.lm_head.weight[: len(SPECIAL)] = 0  # so that it answers in words
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None  # it would not know where to end
    return model, _processor(kind, config)


def made_tokenizer(words: tuple[str, ...], **special: str) -> Any:
    """A tokenizer that knows these words, split at spaces, and special ones by the name of their role."""
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>", **special},
        padding_side="left",
    )


def _processor(kind: str, config: Any) -> Any:
    tokenizer = made_tokenizer(WORDS)
    size = {"height": SIDE, "width": SIDE}
    if kind == "LlavaOnevision":
        return transformers.LlavaOnevisionProcessor(
            transformers.LlavaOnevisionImageProcessor(
                size=size, image_grid_pinpoints=config.image_grid_pinpoints
            ),
            tokenizer,
            transformers.LlavaOnevisionVideoProcessor(size=size),
            num_image_tokens=(SIDE // PATCH) ** 2,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            vision_aspect_ratio=config.vision_aspect_ratio,
            chat_template=CHAT,
        )
    crops = {"size": {"shortest_edge": SIDE}, "crop_size": size}
    if kind == "LlavaNext":
        crops["image_grid_pinpoints"] = config.image_grid_pinpoints
    images = (
        transformers.CLIPImageProcessor if kind == "Llava" else transformers.LlavaNextImageProcessor
    )
    return getattr(transformers, f"{kind}Processor")(
        images(**crops),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,  # CLS
        chat_template=CHAT,
    )
