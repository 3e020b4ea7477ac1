"""A Qwen2-VL, Qwen2.5-VL or Qwen3-VL of random weights and its processor, as `tiny_llava` makes a LLaVA.

Patches, windows and merging are those of the checkpoints: a token is 28 x 28 pixels, a window 4 x 4 tokens
(the patches of Qwen3-VL are smaller than the checkpoints').
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tiny_llava import TEXT, made_tokenizer

TOKEN = 28  # pixels along one side
SPECIAL = ("<pad>", "<unk>", "<image>", "<video>", "<start>", "<end>")
WORDS = (*SPECIAL, *TEXT.split())
QWEN3 = {
    "deepstack_visual_indexes": [1, 3],
    "patch_size": TOKEN // 2,
    "num_position_embeddings": 64,
}
CHAT = (
    "{% for message in messages %}{{ message.role }} {% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}<start><{{ part.type }}><end> {% endif %}"
    "{% endfor %}{% endfor %}"
)


def make(name: str) -> tuple[Any, Any]:
    """A model in eval mode and its processor.

    Args:
        name: of a checkpoint, which says which model: Qwen2.5-VL if 2.5 is in it, Qwen3-VL if Qwen3 is,
            otherwise Qwen2-VL.
    """
    torch.manual_seed(0)
    kind = "Qwen2_5_VL" if "2.5" in name else "Qwen3VL" if "Qwen3" in name else "Qwen2VL"
    vision: dict[str, Any] = {"depth": 6, "num_heads": 4}
    if kind == "Qwen2VL":
        vision |= {"embed_dim": 64, "hidden_size": 64, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 128}
        vision |= {"fullatt_block_indexes": [2, 5]} if kind == "Qwen2_5_VL" else QWEN3
    text: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(WORDS)}
    text |= {"head_dim": 16} if kind == "Qwen3VL" else {}
    # Of the 8 pairs of channels of a head: time, row, column.
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    config = getattr(transformers, f"{kind}Config")(
        vision_config=vision,
        text_config={**text, "rope_parameters": rotary, **ends},
        image_token_id=WORDS.index("<image>"),
        video_token_id=WORDS.index("<video>"),
        vision_start_token_id=WORDS.index("<start>"),
        vision_end_token_id=WORDS.index("<end>"),
        tie_word_embeddings=False,
    )
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        model.lm_head.weight[: len(SPECIAL)] = 0  # so that it answers in words
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None  # it would not know where to end
    size = {"shortest_edge": 4 * TOKEN**2, "longest_edge": 64 * TOKEN**2}  # 4 to 64 tokens
    videos = "Qwen3VL" if kind == "Qwen3VL" else "Qwen2VL"
    patch = {"patch_size": TOKEN // 2}
    processor = getattr(transformers, f"{kind}Processor")(
        transformers.Qwen2VLImageProcessor(size=size, **patch),
        made_tokenizer(WORDS, start_token="<start>", end_token="<end>"),
        getattr(transformers, f"{videos}VideoProcessor")(size=size, **patch),
        chat_template=CHAT,
    )
    return model, processor
