"""Frozen vision models by name, with trained weights where the library has them, and their images."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation import focus_vit
from tokenzoo.tools import model_loading, transformers_loading

FOCUS = "focus-vit-s"
"""The trained ViT-S of `focus_vit`."""


@dataclass(frozen=True)
class VisionModel:
    """A model and its images.

    Attributes:
        model: bare, in eval mode.
        size: pixels on a side.
        mean: of the channels, `[3, 1, 1]`.
        std: standard deviation of the channels, `[3, 1, 1]`.
    """

    model: Any
    size: int
    mean: Tensor
    std: Tensor


def vision_model(name: str, size: int | None = None) -> VisionModel:
    """Return a model by its name.

    Args:
        name: "focus-vit-s"; a model of timm with the tag of its trained weights
            ("vit_small_patch14_dinov2.lvd142m"); a checkpoint folder of transformers, with the weights in
            it; or what else `model_loading.create` takes, with random weights.
        size: pixels on a side; None: the model's own.

    Raises:
        BadArgumentError: it is a vision-language model; or see `model_loading.create`.
        UnknownNameError, MissingDependencyError: see `model_loading.create`.
    """
    mean, std = (torch.tensor(one)[:, None, None] for one in (focus_vit.MEAN, focus_vit.STD))
    if name == FOCUS:
        return VisionModel(focus_vit.load_focus_vit().backbone, size or focus_vit.SIZE, mean, std)
    tower = _tower(name)
    config = getattr(tower.model, "pretrained_cfg", None)
    if config:
        mean, std = (torch.tensor(config[what])[:, None, None] for what in ("mean", "std"))
    elif transformers_loading.is_folder(name):
        mean, std = _channels(Path(name), mean, std)
    own = getattr(getattr(tower.model, "config", None), "image_size", focus_vit.SIZE)
    own = tower.size[1] if tower.size else own
    return VisionModel(tower.model, size or int(own), mean, std)


def _channels(folder: Path, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the channels as a checkpoint says, or these, with a warning."""
    said: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            found = json.loads((folder / name).read_text())
            said = {**found, **found.get("image_processor", {})}
            break
    if said.get("do_normalize") is False:
        return torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    if "image_mean" in said and "image_std" in said:
        mean, std = (
            torch.tensor(said[name])[:, None, None] for name in ("image_mean", "image_std")
        )
        return mean, std
    warnings.warn(
        f"{folder} does not say how its images are normalised: mean and standard deviation of ImageNet are "
        "used. If it was trained with others, save its image processor in the folder",
        stacklevel=3,
    )
    return mean, std


def _tower(name: str) -> model_loading.Tower:
    """Make the model, with trained weights where there are any.

    Raises:
        BadArgumentError: it is a vision-language model.
    """
    folder = transformers_loading.is_folder(name) and transformers_loading.has_weights(name)
    if folder:  # what kind of model it is, before its weights are loaded
        made, config = None, transformers_loading.config_of(name)
    else:
        made = model_loading.create(name, **trained(name))
        config = getattr(made.model, "config", None)
    if hasattr(config, "model_type") and transformers_loading.is_multimodal(config):
        raise BadArgumentError(
            f"{name} is a vision-language model; a vision model is needed here. `tokenzoo tune` takes it "
            "with --prompts, a file of what it is asked"
        )
    return made or model_loading.Tower(transformers_loading.trained(name, {}), ())


def trained(name: str) -> dict[str, Any]:
    """Return the options with which a model of this name has trained weights; {}: they are random.

    Models of timm have a tag for the weights, after a dot.
    """
    tagged = ":" not in name and "." in name and not Path(name).is_dir()
    return {"pretrained": True} if tagged else {}


def normalised(images: Tensor, model: VisionModel) -> Tensor:
    """Normalise images `[s, 3, H, W]` in 0..1 as the model expects them."""
    return (images - model.mean) / model.std
