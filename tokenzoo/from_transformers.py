"""Models of transformers by type, or by the folder of a checkpoint: random weights, and inputs for them.

A multimodal model is made with its own vision tower and a small language model: what is tried on it does
not depend on the language model's size, and a 7B one would not fit everywhere.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from tokenzoo.errors import BadArgumentError, MissingDependencyError

SMALL = {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 128}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def is_folder(name: str) -> bool:
    """Whether this is the folder of a checkpoint, as `save_pretrained` writes it."""
    return (Path(name) / "config.json").is_file()


def names() -> list[str]:
    """The types of models that transformers can make."""
    auto = _transformers("models.auto.configuration_auto")
    return sorted(auto.CONFIG_MAPPING_NAMES)


def make(name: str, options: Mapping[str, Any]) -> Any:
    """A model by its type or folder, with random weights.

    Args:
        name: a type ("clip_vision_model", "llava_onevision"), or a folder with a config.json.
        options: `depth` is the number of blocks of the vision tower; others are the configuration's own.

    Raises:
        BadArgumentError: transformers cannot make it so.
    """
    auto = _transformers("models.auto")
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
            vision.num_hidden_layers = depth
        text: Any = getattr(config, "text_config", None)
        whole = text is not None and hasattr(config, "vision_feature_layer")
        if whole and text is not None:
            for key, value in {**SMALL, **HEADS}.items():
                setattr(text, key, value)
            tokens = [getattr(config, f"{kind}_token_id", 0) for kind in ("image", "video")]
            text.vocab_size = max(text.vocab_size, *(token + 1 for token in tokens))
            text.head_dim = SMALL["hidden_size"] // HEADS["num_attention_heads"]
            if hasattr(text, "layer_types"):
                text.layer_types = ["full_attention"] * SMALL["num_hidden_layers"]
        kind: Any = auto.AutoModelForImageTextToText if whole else auto.AutoModel
        return kind.from_config(config).eval()
    except Exception as error:  # a configuration says no in many ways
        raise BadArgumentError(
            f"transformers cannot make {name!r} with {dict(options)!r}: {error}"
        ) from error


def inputs(model: Any, adapter: Any, batch: int) -> dict[str, Any]:
    """Random arguments for a model: pixels, and for a multimodal one a prompt with an image each.

    Args:
        model: of transformers.
        adapter: of the model.
        batch: number of images.
    """
    vision = getattr(model.config, "vision_config", model.config)
    size = vision.image_size if hasattr(vision, "image_size") else None
    generator = torch.Generator().manual_seed(0)
    if size is None or not hasattr(adapter, "visuals"):
        if hasattr(vision, "num_patches"):
            return _flat(vision, batch, generator)
        height, width = (size, size) if isinstance(size, int) else cast("tuple[int, int]", size)
        return {"pixel_values": torch.randn(batch, 3, height, width, generator=generator)}
    given: dict[str, Any] = {}
    shape = (batch, 3, size, size)
    if hasattr(model.config, "image_grid_pinpoints"):
        own = sys.modules[type(model).__module__]
        crops = own.image_size_to_num_patches((size, size), model.config.image_grid_pinpoints, size)
        shape = (batch, crops, 3, size, size)
        given["image_sizes"] = torch.tensor([[size, size]] * batch)
    given["pixel_values"] = torch.randn(*shape, generator=generator)
    (token, visuals), *_ = adapter.visuals(given, int).items()
    words = torch.randint(5, 50, (batch, 6), generator=generator)
    images = torch.full((batch, visuals[0].full), token)
    given["input_ids"] = torch.cat([words[:, :1], images, words[:, 1:]], 1)
    return given


def _flat(vision: Any, batch: int, generator: torch.Generator) -> dict[str, Any]:
    """Images that are flat patches already (SigLIP 2)."""
    side = round(vision.num_patches**0.5)
    values = vision.num_channels * vision.patch_size**2
    return {
        "pixel_values": torch.randn(batch, side * side, values, generator=generator),
        "pixel_attention_mask": torch.ones(batch, side * side, dtype=torch.int64),
        "spatial_shapes": torch.tensor([[side, side]] * batch),
    }


def _transformers(module: str) -> Any:
    try:
        return importlib.import_module(f"transformers.{module}")
    except ImportError as error:
        raise MissingDependencyError(
            "transformers is not installed: pip install 'tokenzoo[transformers]'"
        ) from error
