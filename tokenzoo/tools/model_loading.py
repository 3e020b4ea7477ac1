"""Vision transformers by name, from the libraries that make them; nothing is downloaded unless asked for.

    create("vit_base_patch16_224")                 of timm
    create("torchvision:vit_b_16")
    create("open_clip:ViT-B-32")                   the image tower of it
    create("transformers:siglip_vision_model")     by type; "transformers:llava" has a small language model
    create("path/to/checkpoint")                   by its config.json, as transformers writes it
    create("deit_small_patch16_224", depth=4)      a short one, where the model's function takes a depth

The libraries are imported when one of their names is asked for.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from tokenzoo._core.validation import check_count, check_kind
from tokenzoo.errors import BadArgumentError, MissingDependencyError, UnknownNameError
from tokenzoo.tools import transformers_loading


@dataclass(frozen=True)
class Tower:
    """A model and the size of its input.

    Attributes:
        model: in eval mode.
        size: (channels, height, width) of an image; () for models of transformers.
    """

    model: Any
    size: tuple[int, ...]


@dataclass(frozen=True)
class _Library:
    """A library that makes models.

    Attributes:
        package: its name on PyPI.
        names: returns the names of its models.
        make: returns a model, given its name and options.
        size: returns (channels, height, width) of a model's images.
    """

    package: str
    names: Callable[[], list[str]]
    make: Callable[[str, dict[str, Any]], Any]
    size: Callable[[Any], tuple[int, ...]]


def create(
    name: str,
    *,
    depth: int | None = None,
    device: str = "cpu",
    **options: Any,
) -> Tower:
    """Make a model by its name, with random weights unless the options say otherwise.

    Args:
        name: of timm, or "library:name", or a folder with a config.json of transformers.
        depth: blocks to make; a model whose function takes no depth has its own number.
        device: "meta" makes a model without weights, which costs nothing.
        options: other arguments of its function, e.g. `img_size`, or timm's `pretrained=True`, with
            which it downloads trained weights.

    Raises:
        UnknownNameError: the library has no such model; names the nearest.
        MissingDependencyError: the library is not installed.
        BadArgumentError: the model cannot be made with these options.
    """
    if transformers_loading.is_folder(check_kind("name", name, str)):
        given = options if depth is None else {**options, "depth": check_count("depth", depth)}
        with torch.device(device):
            return Tower(transformers_loading.make(name, given), ())
    source, _, rest = name.rpartition(":")
    if (source or "timm") not in LIBRARIES:
        raise UnknownNameError(
            f"unknown library {source!r} of the model {name!r}; known are {', '.join(LIBRARIES)}, and a "
            "name without one is timm's"
        )
    library = LIBRARIES[source or "timm"]
    # Suggest names with a tag (of trained weights) only for a name with a tag.
    known = [known for known in library.names() if ("." in known) == ("." in rest)]
    if rest not in known:
        near = [name for name in known if name.startswith(rest)]
        near = (near or difflib.get_close_matches(rest, known, n=4, cutoff=0.4))[:4]
        hint = f"the nearest are {', '.join(near)}" if near and rest else "none is near"
        raise UnknownNameError(
            f"{source or 'timm'} has no model {rest!r}; {hint} (of {len(known)})"
        )
    given = options if depth is None else {**options, "depth": check_count("depth", depth)}
    with torch.device(device):
        try:
            model = _made(library, rest, given)
        except (AssertionError, TypeError) as error:  # what the libraries raise
            raise BadArgumentError(f"{name} cannot be made with {given!r}: {error}") from error
    return Tower(model.eval(), library.size(model))


def _made(library: _Library, name: str, options: dict[str, Any]) -> Any:
    """Make the model; if its function takes no depth, without the depth."""
    try:
        return library.make(name, options)
    except TypeError as error:
        if "depth" not in options or "depth" not in str(error):
            raise
        return library.make(name, {k: v for k, v in options.items() if k != "depth"})


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter a random value of about the size that a trained one has.

    In a newly initialised model some branches contribute almost nothing (LayerScale's gammas and some norms
    after a branch are about 1e-5, some heads are 0) and attention is nearly uniform, which would hide an
    error in any block.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            scale = "LayerScale" in type(module).__name__
            for name, parameter in module.named_parameters(recurse=False):
                normal = torch.randn(parameter.shape, generator=generator)
                if scale or name.startswith("gamma"):
                    value = torch.rand(parameter.shape, generator=generator) + 0.5
                elif name.endswith("bias"):
                    value = 0.1 * normal
                elif parameter.ndim == 1:  # of a norm
                    value = 1 + 0.2 * normal
                elif name.endswith("weight"):
                    value = normal / parameter[0].numel() ** 0.5
                else:  # CLS, registers, positions, latents
                    value = 0.5 * normal
                parameter.copy_(value)


def _need(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = "'tokenzoo[timm]'" if package == "timm" else package
        raise MissingDependencyError(f"{package} is not installed: pip install {extra}") from error


def _timm_size(model: Any) -> tuple[int, int, int]:
    """Return the image size of the model; if it takes any size, the one in its configuration."""
    channels, height, width = model.pretrained_cfg.get("input_size", (3, 224, 224))
    grid = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return (channels, *(grid or (height, width)))


def _open_clip(name: str, options: dict[str, Any]) -> Any:
    """Make the image tower; if it wraps a model of timm, return that model."""
    if "depth" in options:
        raise TypeError("open_clip's models take no depth")
    # create_model moves the model to a device; its default is the CPU.
    device = torch.get_default_device()
    whole = _need("open_clip", "open_clip_torch").create_model(name, device=device, **options)
    visual = whole.visual
    return getattr(visual, "trunk", visual)


def _open_clip_size(model: Any) -> tuple[int, int, int]:
    if hasattr(model, "pretrained_cfg"):
        return _timm_size(model)
    size = model.image_size
    height, width = cast("tuple[int, int]", size if isinstance(size, tuple) else (size, size))
    return 3, height, width


LIBRARIES = {
    "timm": _Library(
        "timm",
        lambda: [*_need("timm", "timm").list_models(), *_need("timm", "timm").list_pretrained()],
        lambda name, options: _need("timm", "timm").create_model(name, **options),
        _timm_size,
    ),
    "torchvision": _Library(
        "torchvision",
        lambda: _need("torchvision.models", "torchvision").list_models(),
        lambda name, options: _need("torchvision.models", "torchvision").get_model(name, **options),
        lambda model: (3, getattr(model, "image_size", 224), getattr(model, "image_size", 224)),
    ),
    "open_clip": _Library(
        "open_clip_torch",
        lambda: _need("open_clip", "open_clip_torch").list_models(),
        _open_clip,
        _open_clip_size,
    ),
    "transformers": _Library(
        "transformers", transformers_loading.names, transformers_loading.make, lambda model: ()
    ),
}
