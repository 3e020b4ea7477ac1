"""The images of `tokenzoo viz`: photographs and collages, preprocessed for the model."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from tokenzoo._core.needs import need
from tokenzoo._core.quoting import quote
from tokenzoo.errors import BadArgumentError
from tokenzoo.tools import digits, model_loading, transformers_loading

COLLAGE = "collage:"
# The shipped model reads images in -1..1 and no other size.
DIGITS = {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}

# The errors of files that are not a state dict of this model.
_UNREADABLE = (
    *(OSError, EOFError, ValueError, RuntimeError, AttributeError),
    *(UnpicklingError, SafetensorError),
)


@dataclass(frozen=True)
class Reader:
    """A model, and the preprocessing of its images.

    Attributes:
        model: in eval mode.
        config: of timm's: input_size, mean, std, crop_pct, interpolation.
        trained: whether its weights are trained.
    """

    model: Any
    config: dict[str, Any]
    trained: bool

    def read(self, names: Sequence[str]) -> Tensor:
        """Read photographs and collages: `[b, 3, h, w]`, resized, cropped and normalised.

        Raises:
            BadArgumentError: no such file, one that is no image, or a collage without a number.
        """
        images, transform = self._tools()
        found: list[Tensor] = []
        for name in names:
            if name.startswith(COLLAGE):
                collage = _collage(name)
                if self.config == DIGITS:
                    found.append(collage)
                    continue
                pixels = (collage / 2 + 0.5).mul(255).round().byte().permute(1, 2, 0).numpy()
                image = images.fromarray(pixels)
            else:
                image = _open(images, name)
            found.append(transform(image))
        return torch.stack(found)

    def frames(self, pixels: Tensor) -> Tensor:
        """Preprocess the frames of a video, uint8 `[f, h, w, 3]`, as images: `[f, 3, h, w]`."""
        images, transform = self._tools()
        return torch.stack([transform(images.fromarray(frame.numpy())) for frame in pixels])

    def _tools(self) -> tuple[Any, Any]:
        """Pillow's images, and the preprocessing of one."""
        images = need("PIL.Image", "timm,viz", "pillow")
        return images, need("timm.data", "timm,viz", "timm").create_transform(
            **self.config, is_training=False
        )

    def light(self, images: Tensor) -> Tensor:
        """Undo the normalisation: images in 0..1."""
        mean, std = (
            torch.tensor(self.config[name])[:, None, None].to(images) for name in ("mean", "std")
        )
        return (images * std + mean).clamp(0, 1)


def reader(name: str, *, weights: Path | None = None, pretrained: bool = False) -> Reader:
    """Make the model of this name, with the preprocessing of its images.

    Args:
        name: of a model of timm, or "digits": the shipped one.
        weights: a state dict to load, .safetensors or .pth.
        pretrained: download trained weights.

    Raises:
        UnknownNameError: timm has no such model; names the nearest.
        BadArgumentError: weights that do not fit or cannot be read.
    """
    if name == "digits":
        if weights is not None or pretrained:
            raise BadArgumentError("the model 'digits' has its own weights: leave out --weights")
        return Reader(digits.load_digits_vit(), DIGITS, trained=True)
    if weights is not None and pretrained:
        raise BadArgumentError("--weights and --pretrained: choose one")
    if ":" in name or transformers_loading.is_folder(name):
        raise BadArgumentError(
            f"model {name!r}; it must be 'digits' or the name of a model of timm"
        )
    options: dict[str, Any] = {"pretrained": True} if pretrained else {}
    try:
        tower = model_loading.create(name, **options)
    except (OSError, RuntimeError) as error:
        raise BadArgumentError(
            f"{name} cannot be made with trained weights: {textwrap.shorten(str(error), 400)}. Pass a "
            "file: --weights"
        ) from error
    if weights is not None:
        load(tower.model, weights)
    config = need("timm.data", "timm,viz", "timm").resolve_data_config(
        {"input_size": tower.size}, pretrained_cfg=tower.model.pretrained_cfg
    )
    return Reader(tower.model, config, trained=pretrained or weights is not None)


def load(model: nn.Module, path: Path) -> None:
    """Load a state dict, which may be inside a checkpoint or of a DDP-wrapped model.

    Raises:
        BadArgumentError: the file cannot be read, or is not for this model.
    """
    try:
        if path.suffix == ".safetensors":
            state: Any = load_tensors(path.read_bytes())
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            state = state.get(key, state)
        state = {name.removeprefix("module."): value for name, value in state.items()}
        model.load_state_dict(state)
    except (
        Exception
    ) as error:  # what a file that is no checkpoint makes of torch.load is of any kind
        raise BadArgumentError(
            f"{path} cannot be loaded into {type(model).__name__}; it must be a .safetensors or .pth file "
            f"with the state dict of exactly this model: {textwrap.shorten(str(error), 400)}"
        ) from error


def _collage(name: str) -> Tensor:
    """The collage of a seed, of test digits: `[3, 64, 64]` in -1..1."""
    seed = name.removeprefix(COLLAGE)
    if not (seed.isascii() and seed.isdigit() and len(seed) < 10):
        raise BadArgumentError(f"{quote(name)}: a collage needs a seed, as in {COLLAGE}0")
    return digits.collages("test", 1, seed=int(seed)).images[0]


def _open(images: Any, name: str) -> Any:
    try:
        return images.open(name).convert("RGB")
    except (OSError, ValueError) as error:  # UnidentifiedImageError is an OSError
        raise BadArgumentError(
            f"{name} cannot be read as an image ({error}); pass an image file, or {COLLAGE}0"
        ) from error
