"""Small models of transformers and their real processors, with weights at which nothing is degenerate.

Nothing is downloaded: the weights are random, the tokenizer has a few words, the photographs are the two
that come with scikit-learn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from sklearn.datasets import load_sample_images
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

SIDE, PATCH = 56, 7  # of every tower: 8 x 8 patches

_SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": SIDE,
    "patch_size": PATCH,
}
# Model class, and what this family wants of its own (None: it has no such option).
_DINOV2 = {"mlp_ratio": 2, "intermediate_size": None}
_TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPVisionModel", {}),
    "siglip": ("SiglipVisionModel", {}),
    "siglip2": ("Siglip2VisionModel", {"num_patches": (SIDE // PATCH) ** 2, "image_size": None}),
    "dinov2": ("Dinov2Model", _DINOV2),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", {**_DINOV2, "num_register_tokens": 3}),
    "dinov3_vit": ("DINOv3ViTModel", {"num_register_tokens": 3}),
    "vit": ("ViTModel", {}),
    "aimv2": ("Aimv2VisionModel", {}),
    "radio": (
        "RadioModel",
        {"mlp_ratio": 2.0, "intermediate_size": None, "num_cls_tokens": 2, "num_registers": 3},
    ),
}
TOWERS = tuple(_TOWERS)
PREFIX = {
    **dict.fromkeys(("siglip", "siglip2", "aimv2"), 0),
    **dict.fromkeys(("dinov2_with_registers", "dinov3_vit"), 4),
    "radio": 5,
}
"""Tokens before the patches of a tower; of all others 1: CLS."""

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>")
_TEXT = """
a about and animal are be behind big blue bright building by cat city color colour dark describe
different does dog dome far few first flower from gold green has hat how in is it left light
like many more near no not of old on one petal photo picture pink point red right roof same
second see show sky small stem summer temple that the there this to tree two user assistant what
where which white who yellow yes you : ? . ,
"""
WORDS = (*SPECIAL, *dict.fromkeys(_TEXT.split()))
PAD, BOS, EOS, IMAGE, VIDEO = (WORDS.index(f"<{w}>") for w in ("pad", "s", "/s", "image", "video"))

# Any-resolution grids: rows x columns of crops.
GRIDS = [
    [SIDE * rows, SIDE * columns] for rows, columns in ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))
]

_LLM: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": len(WORDS),
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}


def answering(model: Any) -> Any:
    """Give a model random weights and answers of full length, without special tokens; in eval mode."""
    randomise(model).eval()
    with torch.no_grad():  # logits of 0, so that no answer has a placeholder or an end in it
        model.lm_head.weight[: len(SPECIAL)] = 0
    generation = model.generation_config
    generation.pad_token_id, generation.bos_token_id = PAD, BOS
    generation.eos_token_id = None  # an answer is as long as it may be
    return model


def tower(name: str, **overrides: Any) -> Any:
    """The tower of that name, with these options of its configuration: always the same, in eval mode."""
    model, options = _TOWERS[name]
    wanted = {key: value for key, value in tower_sizes(**options).items() if value is not None}
    return made(model, **{**wanted, **overrides})


def made(kind: str, **options: Any) -> Any:
    """A model of this class of transformers, with this configuration and random weights, in eval mode."""
    found = getattr(transformers, kind)
    return randomise(found(found.config_class(**options))).eval()


def tower_sizes(**options: Any) -> dict[str, Any]:
    """The sizes of a small tower, for a configuration of one's own."""
    return {**_SIZES, **options}


def pixels(model: Any, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Random images of a tower's own size, as the arguments of its call."""
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    if hasattr(config, "num_patches"):  # SigLIP 2 reads flat patches, and how they lie
        side = int(config.num_patches**0.5)
        shape = (batch, config.num_patches, config.num_channels * config.patch_size**2)
        return {
            "pixel_values": torch.randn(shape, generator=generator),
            "pixel_attention_mask": torch.ones(shape[:2], dtype=torch.int64),
            "spatial_shapes": torch.full((batch, 2), side),
        }
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    shape = (batch, config.num_channels, height, width)
    return {"pixel_values": torch.randn(shape, generator=generator)}


def llava(**overrides: Any) -> Any:
    """LLaVA-1.5, small: a CLIP tower of 6 blocks read after the fifth, 64 tokens without CLS, and a Llama.

    Overrides are for the configuration; `vision` and `text` are dicts for its two parts.
    """
    return _llava("Llava", _CLIP, "LlamaConfig", {"vision_feature_layer": -2}, overrides)


def llava_next(**overrides: Any) -> Any:
    """LLaVA-NeXT, small: as `llava`, and an image is a base crop and a grid of crops of `GRIDS`."""
    options = {"vision_feature_layer": -2, "image_grid_pinpoints": GRIDS}
    return _llava("LlavaNext", _CLIP, "LlamaConfig", options, overrides)


def llava_onevision(**overrides: Any) -> Any:
    """LLaVA-OneVision, small: a SigLIP tower read at its end, a Qwen2, crops of `GRIDS`, videos."""
    options = {
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_2",  # 3 and 4 crops are shrunk, as large grids are there
        "image_grid_pinpoints": GRIDS,
        "video_token_id": VIDEO,
    }
    return _llava("LlavaOnevision", _SIGLIP, "Qwen2Config", options, overrides)


_CLIP = ("CLIPVisionConfig", {**_SIZES, "num_hidden_layers": 6, "projection_dim": 48})
_SIGLIP = ("SiglipVisionConfig", {**_SIZES, "vision_use_head": False})


def _llava(
    name: str,
    vision: tuple[str, dict[str, Any]],
    text: str,
    options: dict[str, Any],
    overrides: dict[str, Any],
) -> Any:
    seen = {**vision[1], **overrides.pop("vision", {})}
    said = {**_LLM, **overrides.pop("text", {})}
    parts = {
        "vision_config": getattr(transformers, vision[0])(**seen),
        "text_config": getattr(transformers, text)(**said),
    }
    fixed = {"image_token_id": IMAGE, "tie_word_embeddings": False}
    config = getattr(transformers, f"{name}Config")(**parts, **{**fixed, **options, **overrides})
    return answering(getattr(transformers, f"{name}ForConditionalGeneration")(config))


_SHARP = re.compile(r"\b(q_proj|k_proj|query|key)\.weight$")


def randomise(model: Any, seed: int = 0) -> Any:
    """Give every parameter a value of about the size that a trained one has.

    As transformers makes them, matrices and CLS are of 0.02: attention would be uniform, blocks would
    hardly change their tokens, and a mistake would be invisible in the output. Here a linear layer keeps
    the variance of its input; the logits of an attention have a deviation of about 2, those of the
    vocabulary of about 4.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            path, _, last = name.rpartition(".")
            owner = model.get_submodule(path)
            if last == "lambda1":  # LayerScale
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
            elif last in ("gate_up_proj", "down_proj"):  # of experts `[e, out, in]`
                parameter.copy_(normal(parameter) / parameter.shape[-1] ** 0.5)
            elif last.endswith("bias"):
                parameter.copy_(0.1 * normal(parameter))
            elif "Norm" in type(owner).__name__:
                parameter.copy_(1 + 0.2 * normal(parameter))
            elif last.endswith("weight") and not isinstance(owner, nn.Embedding):
                gain = 1.4 if _SHARP.search(name) else 4.0 if "lm_head" in name else 1.0
                parameter.copy_(gain * normal(parameter) / parameter[0].numel() ** 0.5)
            else:  # words, CLS, registers, positions, newline, probe
                parameter.copy_(0.5 * normal(parameter))
    return model


def _tokenizer(side: str) -> Any:
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    shown = {"image_token": "<image>", "video_token": "<video>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, **special, extra_special_tokens=shown, padding_side=side
    )


def processor(model: Any, padding_side: str = "left") -> Any:
    """The real processor of one of the three LLaVAs here, for its sizes."""
    config = model.config
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    size = {"height": side, "width": side}
    tokenizer = _tokenizer(padding_side)
    strategy = config.vision_feature_select_strategy
    if config.model_type == "llava_onevision":
        return transformers.LlavaOnevisionProcessor(
            transformers.LlavaOnevisionImageProcessor(
                size=size, image_grid_pinpoints=config.image_grid_pinpoints
            ),
            tokenizer,
            transformers.LlavaOnevisionVideoProcessor(size=size),
            num_image_tokens=(side // patch) ** 2,
            vision_feature_select_strategy=strategy,
            vision_aspect_ratio=config.vision_aspect_ratio,
        )
    sizes: dict[str, Any] = {"size": {"shortest_edge": side}, "crop_size": size}
    kind, shows = transformers.LlavaProcessor, transformers.CLIPImageProcessor
    if config.model_type == "llava_next":
        kind, shows = transformers.LlavaNextProcessor, transformers.LlavaNextImageProcessor
        sizes["image_grid_pinpoints"] = config.image_grid_pinpoints
    return kind(
        shows(**sizes),
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,  # CLS
    )


@cache
def _photographs() -> tuple[np.ndarray, ...]:
    return tuple(load_sample_images().images)  # a temple and a flower, each [427, 640, 3]


def photos() -> list[Image.Image]:
    """Eight photographs: temple, flower; of each a tall, a wide and a small crop of other proportions."""
    found = [Image.fromarray(photo) for photo in _photographs()]
    boxes = ((200, 0, 360, 427), (0, 120, 640, 290), (280, 180, 330, 220))
    return found + [photo.crop(box) for photo in found for box in boxes]


def video(frames: int = 4, of: int = 0) -> np.ndarray:
    """A window that moves over a photograph from left to right: `[frames, 240, 320, 3]`, bytes."""
    photo = _photographs()[of]
    lefts = np.linspace(0, photo.shape[1] - 320, frames).astype(int)
    return np.stack([photo[100:340, left : left + 320] for left in lefts])


def inputs(
    model: Any,
    prompts: str | Sequence[str],
    images: Sequence[Sequence[Any]] | None = None,
    videos: Sequence[Any] | None = None,
    padding_side: str = "left",
) -> Any:
    """What the model's processor returns for these prompts, as tensors; padded if there are several.

    `images` are those of each prompt, `videos` of all prompts; the processor wants as many frames of each.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    given: dict[str, Any] = {"text": prompts, "padding": True, "return_tensors": "pt"}
    if images is not None and any(images):  # a list of empty lists is refused by the processors
        given["images"] = [list(some) for some in images]
    if videos is not None:
        given["videos"] = list(videos)
    return processor(model, padding_side)(**given)
