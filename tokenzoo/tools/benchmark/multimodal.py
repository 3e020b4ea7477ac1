"""Whole multimodal models by name, of random weights, and prompts for them.

llava-1.5-7b        CLIP ViT-L/14-336 (23 blocks: the 24th is not used) and a 7B Llama; one image
llava-video-7b      SigLIP so400m/14-384 and Qwen2-7B; a video, a frame averaged to 13 x 13 tokens
llava-video-0.5b    the same tower, and Qwen2-0.5B
llava-onevision-0.5b    as that, a frame interpolated to 14 x 14 tokens, as transformers' model has it
qwen2-vl-7b, qwen2.5-vl-7b    a photograph of 784 x 1036 pixels, and a video of 336 x 448
qwen2.5-vl-0.5b     half of the public tower's blocks, and Qwen2-0.5B's language model
internvl3-8b        InternViT-300M/14-448 and Qwen2.5-7B; four tiles and a thumbnail, 256 tokens each
internvl3-0.5b      the same tower, and Qwen2-0.5B's language model (the public one is called 1B)
paligemma2-3b       SigLIP so400m/14-224 and Gemma 2 2B; one image
qwen3-vl-8b         a photograph of 768 x 1024 pixels, and a video of 320 x 448, a time before each slice
qwen3-vl-0.5b       the tower of Qwen3-VL-2B, and Qwen3-0.6B's language model: there is no such checkpoint
gemma-3-4b          SigLIP so400m/14-896 and Gemma 3 4B; one image, 4096 patches of which are 256 tokens
smolvlm-2b          SigLIP so400m/14-384 and SmolLM2 1.7B (SmolVLM2-2.2B); twelve tiles and the whole image,
                    81 tokens each
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenzoo.errors import BadArgumentError
from tokenzoo.tools.benchmark import prompts
from tokenzoo.tools.benchmark.configurations import KINDS, Config, library
from tokenzoo.tools.benchmark.workload import Setting, Sizes
from tokenzoo.tools.video import read_frames

GRIDS = ((56, 74), (24, 32))  # of the photograph and of a slice: rows and columns of patches
QWEN3_GRIDS = ((48, 64), (20, 28))  # its patches are larger
TINY_GRIDS = ((8, 12), (4, 6))


def _sizes(width: int, mlp: int, layers: int, heads: int, **others: Any) -> Config:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {**dict(zip(names, (width, mlp, layers, heads), strict=True)), **others}


def _language(*given: int, kv: int, words: int, tied: bool = False) -> Config:
    return _sizes(*given, num_key_value_heads=kv, vocab_size=words, tie_word_embeddings=tied)


def _qwen2_5(blocks: int, width: int, mlp: int, heads: int, every: int = 8) -> Config:
    full = list(range(every - 1, blocks, every))
    others = {"fullatt_block_indexes": full, "window_size": 112, "patch_size": 14}
    names = {"depth": blocks, "hidden_size": width, "intermediate_size": mlp, "num_heads": heads}
    return {**names, **others}


def _qwen3(blocks: int, width: int, mlp: int, heads: int, added: list[int]) -> Config:
    names = {"depth": blocks, "hidden_size": width, "intermediate_size": mlp, "num_heads": heads}
    return {**names, "deepstack_visual_indexes": added, "patch_size": 16}


CLIP_L = _sizes(1024, 4096, 23, 16, image_size=336, patch_size=14)
SO400M = _sizes(1152, 4304, 26, 16, image_size=384, patch_size=14)
TINY = _sizes(64, 96, 6, 4, image_size=126, patch_size=14)
QWEN2 = {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "patch_size": 14}
TINY_QWEN2 = {**QWEN2, "depth": 4, "embed_dim": 64, "mlp_ratio": 2, "num_heads": 4}
VICUNA = _language(4096, 11008, 32, 32, kv=32, words=32064)
SMALL = _language(896, 4864, 24, 14, kv=2, words=152000, tied=True)
LARGE = _language(3584, 18944, 28, 28, kv=4, words=152128)
TINY_LANGUAGE = _language(64, 96, 3, 4, kv=2, words=151680)
INTERN_VIT = _sizes(1024, 4096, 24, 16, image_size=[448, 448], patch_size=[14, 14])
TINY_INTERN = _sizes(64, 96, 6, 4, image_size=[112, 112], patch_size=[14, 14])
SO400M_224 = _sizes(1152, 4304, 27, 16, image_size=224, patch_size=14)
GEMMA2 = _language(2304, 9216, 26, 8, kv=4, words=257216, tied=True) | {"head_dim": 256}
QWEN3_8B = _language(4096, 12288, 36, 32, kv=8, words=151936) | {"head_dim": 128}
QWEN3_06B = _language(1024, 3072, 28, 16, kv=8, words=151936, tied=True) | {"head_dim": 128}
TINY_QWEN3 = _qwen3(4, 64, 96, 4, [1, 2])
SO400M_896 = _sizes(1152, 4304, 27, 16, image_size=896, patch_size=14)
TINY_GEMMA3 = _sizes(64, 96, 6, 4, image_size=112, patch_size=14)
GEMMA3 = _language(2560, 10240, 34, 8, kv=4, words=262208, tied=True) | {
    "head_dim": 256,
    "sliding_window": 1024,
}
SO400M_27 = {**SO400M, "num_hidden_layers": 27}
SMOLLM2 = _language(2048, 8192, 24, 32, kv=32, words=49280)


@dataclass(frozen=True)
class Shape:
    """A kind of model, in the size of a public checkpoint, and small.

    Attributes:
        kind: of `KINDS`.
        vision: sizes of the tower.
        text: sizes of the language model.
        tiny: of the tower in a test.
        frames: default number of frames of the video; 0: no video.
        averaged: whether a frame is pooled to half of its rows and columns, rounded down.
        tiles: of the image.
        group: patches of a tile that are one token.
        eager: whether transformers runs its language model by eager attention alone (Gemma 2).
    """

    kind: str
    vision: Config
    text: Config
    tiny: Config
    frames: int
    averaged: bool = False
    tiles: int = 1
    group: int = 1
    eager: bool = False


SHAPES = {
    "llava-1.5-7b": Shape("llava", CLIP_L, VICUNA, TINY, 0),
    "llava-video-7b": Shape("onevision", SO400M, LARGE, TINY, 64, averaged=True),
    "llava-video-0.5b": Shape("onevision", SO400M, SMALL, TINY, 8, averaged=True),
    "llava-onevision-0.5b": Shape("onevision", SO400M, SMALL, TINY, 8),
    "qwen2-vl-7b": Shape("qwen2", QWEN2, LARGE, TINY_QWEN2, 8),
    "qwen2.5-vl-7b": Shape(
        "qwen2_5", _qwen2_5(32, 1280, 3420, 16), LARGE, _qwen2_5(4, 64, 96, 4, every=2), 8
    ),
    "qwen2.5-vl-0.5b": Shape(
        "qwen2_5", _qwen2_5(16, 1280, 3420, 16), SMALL, _qwen2_5(4, 64, 96, 4, every=2), 8
    ),
    "internvl3-8b": Shape("internvl", INTERN_VIT, LARGE, TINY_INTERN, 0, tiles=5, group=4),
    "internvl3-0.5b": Shape("internvl", INTERN_VIT, SMALL, TINY_INTERN, 0, tiles=5, group=4),
    "paligemma2-3b": Shape("paligemma", SO400M_224, GEMMA2, TINY, 0, eager=True),
    "qwen3-vl-8b": Shape("qwen3", _qwen3(27, 1152, 4304, 16, [8, 16, 24]), QWEN3_8B, TINY_QWEN3, 8),
    "qwen3-vl-0.5b": Shape(
        "qwen3", _qwen3(24, 1024, 4096, 16, [5, 11, 17]), QWEN3_06B, TINY_QWEN3, 8
    ),
    "gemma-3-4b": Shape("gemma3", SO400M_896, GEMMA3, TINY_GEMMA3, 0, group=16),
    "smolvlm-2b": Shape("smolvlm", SO400M_27, SMOLLM2, TINY, 0, tiles=13, group=9),
}
"""As the config.json of the public checkpoints has them, but for what the names above say.

Of Qwen3-VL-8B and Gemma 3 the sizes were compared with copies of these files in public code (of Qwen3-VL-8B
all but the width of the language model's MLP, which its number of parameters confirms), and the smaller
tower of Qwen3-VL with that of the 4B. No copy was found of SmolVLM2-2.2B and Qwen3-0.6B: of these, of
InternVL3 and of PaliGemma 2 only the numbers of parameters are checked (of Qwen3-0.6B not even that).
"""


def make(
    name: str, sizes: Sizes, setting: Setting, video: Path | None = None
) -> tuple[Any, Config]:
    """Make a model and a prompt for it.

    Args:
        name: in `SHAPES`.
        sizes: of the model and of the call.
        setting: device, dtype and attention.
        video: the file whose frames are in the prompt; None: random pixels.

    Raises:
        MissingDependencyError: transformers, or the attention that is asked for, is not installed.
        BadArgumentError: transformers cannot make the model; `frames` or `video` for a model without video;
            or the file cannot be read, or has fewer frames.
    """
    shape = SHAPES[name]
    if not shape.frames and (sizes.frames is not None or video is not None):
        known = ", ".join(one for one, other in SHAPES.items() if other.frames)
        named = f"video={video}" if sizes.frames is None else f"frames={sizes.frames}"
        raise BadArgumentError(
            f"{named} of {name}, which takes an image: leave it out, or choose of {known}"
        )
    frames = sizes.frames or shape.frames
    film = None if video is None else read_frames(video, frames).frames
    vision = dict(shape.tiny if sizes.tiny else shape.vision)
    text = dict(TINY_LANGUAGE if sizes.tiny else shape.text)
    if sizes.depth is not None:
        vision["depth" if "depth" in vision else "num_hidden_layers"] = sizes.depth
        if "fullatt_block_indexes" in vision:
            full = [i for i in vision["fullatt_block_indexes"] if i < sizes.depth]
            vision["fullatt_block_indexes"] = full or [sizes.depth - 1]
        if "deepstack_visual_indexes" in vision:
            vision["deepstack_visual_indexes"] = [
                i for i in vision["deepstack_visual_indexes"] if i < sizes.depth
            ]
    if sizes.layers is not None:
        text["num_hidden_layers"] = sizes.layers
    attention: Any = setting.attention
    if shape.eager:
        attention = {"vision_config": attention, "text_config": "eager"}
    try:
        config = KINDS[shape.kind](vision, text)
        cast("Any", torch).manual_seed(0)
        with torch.device(setting.device):
            model = library().AutoModelForImageTextToText.from_config(
                config, dtype=setting.torch_dtype, attn_implementation=attention
            )
    except (ImportError, ValueError) as error:  # what transformers raises
        raise BadArgumentError(
            f"{name} cannot be made with attention={setting.attention!r}: {error}"
        ) from error
    if shape.averaged:
        _average(model.model)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    if shape.kind.startswith("qwen"):
        timed = shape.kind == "qwen3"
        grids = TINY_GRIDS if sizes.tiny else QWEN3_GRIDS if timed else GRIDS
        given = prompts.packed(model, frames, *grids, timed=timed, film=film)
    elif shape.kind in ("internvl", "paligemma", "gemma3", "smolvlm"):
        given = prompts.tiled(model, shape.tiles, shape.group)
    else:
        given = prompts.shown(model, frames, film)
    batched = {
        key: value.repeat(sizes.batch, *[1] * (value.ndim - 1)) for key, value in given.items()
    }
    return model.eval(), batched


def _average(base: Any) -> None:
    """Pool a frame to half of its rows and columns, rounded down (27 to 13), as LLaVA-Video does."""
    kind: Any = base.__class__
    own = {"apply_pooling": _averaged, "__module__": kind.__module__}
    base.__class__ = type(kind.__name__, (kind,), own)


def _averaged(base: Any, image_features: Tensor) -> Tensor:
    side = round(image_features.shape[1] ** 0.5)
    f, _, c = image_features.shape
    frames = image_features.transpose(1, 2).reshape(f, c, side, side)
    return F.avg_pool2d(frames, 2).flatten(2).transpose(1, 2)
