"""Models of transformers by type, or by the folder of a checkpoint: random weights, and inputs for them.

A multimodal model is made with its own vision tower and a small language model: results do not depend
on the language model's size, and one of 7B would not fit on every machine.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any, cast

import torch

from tokenzoo._core.needs import need
from tokenzoo.attachment import EVERY
from tokenzoo.errors import AttachError, BadArgumentError

SMALL = {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 128}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
AXES = [2, 3, 3]  # of the 8 pairs of a head: time, row, column
GRID = (11, 13)  # tokens of a packed image: no window divides it
WIDTHS = ("out_hidden_size", "projection_dim", "text_hidden_size")
"""Entries of a vision config with the width of the language model."""
PREFIX = ("paligemma",)
"""Types of models whose `token_type_ids` are 0 in the prompt; in others they are 1 at images."""


def is_folder(name: str) -> bool:
    """Whether this is the folder of a checkpoint, as `save_pretrained` writes it."""
    try:
        return (Path(name) / "config.json").is_file()
    except (OSError, ValueError):  # the name is too long or contains a null
        return False


def _module(name: str) -> Any:
    return need(f"transformers.{name}", "transformers", "transformers")


def names() -> list[str]:
    """Return the types of models that transformers can make, sorted."""
    auto = _module("models.auto.configuration_auto")
    return sorted(auto.CONFIG_MAPPING_NAMES)


def make(name: str, options: Mapping[str, Any]) -> Any:
    """Make a model by its type or folder, with random weights.

    Args:
        name: a type ("clip_vision_model", "llava_onevision"), or a folder with a config.json.
        options: `depth` is the number of blocks of the vision tower; others are the configuration's own.

    Raises:
        BadArgumentError: transformers cannot make the model with these options.
    """
    auto = _module("models.auto")
    given = dict(options)
    depth = given.pop("depth", None)
    try:
        config: Any = (
            auto.AutoConfig.from_pretrained(name, local_files_only=True, **given)
            if is_folder(name)
            else auto.AutoConfig.for_model(name, **given)
        )
        vision = getattr(config, "vision_config", config)
        if depth is not None:
            # Where both are known they are the same.
            setattr(vision, "depth" if hasattr(vision, "depth") else "num_hidden_layers", depth)
            if hasattr(vision, "fullatt_block_indexes"):  # both kinds of blocks, as in the long one
                full = [i for i in vision.fullatt_block_indexes if i < depth]
                vision.fullatt_block_indexes = full or [depth - 1]
        whole = is_multimodal(config)
        if whole:
            _shrink(config)
        kind: Any = auto.AutoModelForImageTextToText if whole else auto.AutoModel
        return kind.from_config(config).eval()
    except Exception as error:  # configurations raise errors of many types
        raise BadArgumentError(
            f"transformers cannot make {name!r} with {dict(options)!r}: {error}"
        ) from error


def config_of(folder: str) -> Any:
    """Return the configuration in a checkpoint's folder.

    Raises:
        BadArgumentError: transformers cannot read it.
    """
    try:
        return _module("models.auto").AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:  # an unknown type of model is a ValueError
        raise BadArgumentError(
            f"transformers cannot read the configuration of {folder!r}: {error}"
        ) from error


def has_weights(folder: str) -> bool:
    """Whether a checkpoint's folder contains the weights."""
    patterns = ("model*.safetensors", "pytorch_model*.bin")
    return any(any(Path(folder).glob(pattern)) for pattern in patterns)


def trained(folder: str, options: Mapping[str, Any]) -> Any:
    """Load a model with the weights in its folder, in float32.

    Args:
        folder: as `save_pretrained` writes it.
        options: of the configuration.

    Raises:
        BadArgumentError: transformers cannot load the model with these options.
    """
    auto = _module("models.auto")
    given = {"local_files_only": True, "dtype": torch.float32, **options}
    try:
        return auto.AutoModel.from_pretrained(folder, **given).eval()
    except Exception as error:  # checkpoints raise errors of many types
        raise BadArgumentError(
            f"transformers cannot load {folder!r} with {dict(options)!r}: {error}"
        ) from error


def is_multimodal(config: Any) -> bool:
    """Whether the configuration is of a vision tower and a language model that writes about images."""
    known = _module("models.auto.modeling_auto").MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    parts = ("vision_config", "text_config")
    return config.model_type in known and all(getattr(config, part, None) for part in parts)


def _shrink(config: Any) -> None:
    """Make the language model of a multimodal configuration a small one."""
    text: Any = config.text_config
    vision: Any = config.vision_config
    layers, width = SMALL["num_hidden_layers"], SMALL["hidden_size"]
    head = width // HEADS["num_attention_heads"]
    for key, value in {**SMALL, **HEADS, "head_dim": head}.items():
        setattr(text, key, value)
    text.vocab_size = max(text.vocab_size, *(token + 1 for token in placeholders(config)))
    types = getattr(text, "layer_types", None) or ()
    if types:
        text.layer_types = (
            ["full_attention"] * layers if "full_attention" in types else [*types[:layers]]
        )
    rope: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    # A packed tower has positions with time, row and column, and a config may leave their default out.
    if "mrope_section" in rope or hasattr(vision, "spatial_merge_size"):
        text.rope_parameters = {**rope, "mrope_section": AXES}
    for part, keys in ((config, ("hidden_size", *WIDTHS)), (vision, WIDTHS)):
        for key in keys:
            if hasattr(part, key):
                setattr(part, key, width)
    if hasattr(vision, "embed_dim") and not hasattr(vision, "out_hidden_size"):  # Qwen2-VL
        vision.hidden_size = width
    _fit(config, vision)


def _fit(config: Any, vision: Any) -> None:
    """Make the image of a default configuration one that the projector can make tokens of."""
    pooled, joined = getattr(config, "mm_tokens_per_image", 0), getattr(config, "scale_factor", 0)
    size = getattr(vision, "image_size", None)
    if not (pooled or joined) or not isinstance(size, int):
        return
    along = size // vision.patch_size
    unit = isqrt(pooled) if pooled else joined
    vision.image_size = vision.patch_size * unit * max(2 if pooled else 1, -(-along // unit))


def placeholders(config: Any) -> list[int]:
    """Return the tokens of a prompt that stand for an image and for a video; 0: none."""
    return [getattr(config, f"{kind}_token_id", None) or 0 for kind in ("image", "video")]


def inputs(model: Any, adapter: Any, batch: int) -> dict[str, Any]:
    """Make random arguments for a model: pixels, and for a multimodal one prompts of one image each.

    Args:
        model: of transformers.
        adapter: of the model.
        batch: number of images.
    """
    vision = getattr(model.config, "vision_config", model.config)
    size = vision.image_size if hasattr(vision, "image_size") else None
    generator = torch.Generator().manual_seed(0)
    given: dict[str, Any]
    if hasattr(vision, "spatial_merge_size"):
        return _packed(model, vision, adapter, batch, generator)
    prompts = adapter is not None and adapter.reads_prompts
    if hasattr(vision, "num_patches") and size is None:
        given = _flat(vision, batch, generator)
        return _with_prompt(model, adapter, given, batch, generator) if prompts else given
    if size is None or not prompts:
        if size is None:
            raise BadArgumentError(
                f"the configuration of {type(model).__name__} has no image_size: only models that take "
                "images are tried"
            )
        height, width = (size, size) if isinstance(size, int) else cast("tuple[int, int]", size)
        return {"pixel_values": torch.randn(batch, 3, height, width, generator=generator)}
    given = {}
    size = size if isinstance(size, int) else int(size[0])
    shape = (batch, 3, size, size)
    if hasattr(model.config, "image_grid_pinpoints"):
        own = sys.modules[type(model).__module__]
        crops = own.image_size_to_num_patches((size, size), model.config.image_grid_pinpoints, size)
        shape = (batch, crops, 3, size, size)
        given["image_sizes"] = torch.tensor([[size, size]] * batch)
    elif "pixel_attention_mask" in inspect.signature(model.forward).parameters:
        shape = (batch, 1, 3, size, size)  # the tiles of each prompt
    given["pixel_values"] = torch.randn(*shape, generator=generator)
    return _with_prompt(model, adapter, given, batch, generator)


def _with_prompt(
    model: Any, adapter: Any, given: dict[str, Any], batch: int, generator: torch.Generator
) -> dict[str, Any]:
    """Add prompts, and the types of their tokens under the names that the model takes: `[batch, n]`."""
    given["input_ids"] = ids = _prompt(model.config, adapter, given, batch, generator)
    images = (ids == model.config.image_token_id).to(ids.dtype)
    types = {
        "mm_token_type_ids": images,
        "token_type_ids": images * (model.config.model_type not in PREFIX),
    }
    taken = inspect.signature(model.forward).parameters
    return {**given, **{name: value for name, value in types.items() if name in taken}}


def _prompt(
    config: Any, adapter: Any, given: Mapping[str, Any], batch: int, generator: torch.Generator
) -> torch.Tensor:
    """Return prompts of six words with an image after the first: `[batch, n]`."""
    try:
        (token, visuals), *_ = adapter.visuals(given, EVERY).items()
    except AttachError as error:
        raise BadArgumentError(
            f"{config.model_type} takes pixels in a form of its own, which is not made here: {error}"
        ) from error
    free = torch.tensor([word for word in range(5, 50) if word not in placeholders(config)])
    words = free[torch.randint(len(free), (batch, 6), generator=generator)]
    images = torch.full((batch, visuals[0].full), token)
    return torch.cat([words[:, :1], images, words[:, 1:]], 1)


def _packed(
    model: Any, vision: Any, adapter: Any, batch: int, generator: torch.Generator
) -> dict[str, Any]:
    """Return images of one odd size, concatenated, as patches (Qwen2-VL, Cosmos3-Edge)."""
    height, width = (vision.spatial_merge_size * side for side in GRID)
    channels = vision.in_channels if hasattr(vision, "in_channels") else vision.num_channels
    values = channels * getattr(vision, "temporal_patch_size", 1) * vision.patch_size**2
    pixels = torch.randn(batch * height * width, values, generator=generator)
    grids = torch.tensor([[1, height, width]] * batch)
    if adapter is None or not adapter.reads_prompts:
        name, *_ = inspect.signature(model.forward).parameters
        return {name: pixels, "grid_thw": grids}
    given: dict[str, Any] = {"pixel_values": pixels, "image_grid_thw": grids}
    return _with_prompt(model, adapter, given, batch, generator)


def _flat(vision: Any, batch: int, generator: torch.Generator) -> dict[str, Any]:
    """Return images as flat patches (SigLIP 2)."""
    side = round(vision.num_patches**0.5)
    values = vision.num_channels * vision.patch_size**2
    return {
        "pixel_values": torch.randn(batch, side * side, values, generator=generator),
        "pixel_attention_mask": torch.ones(batch, side * side, dtype=torch.int64),
        "spatial_shapes": torch.tensor([[side, side]] * batch),
    }
