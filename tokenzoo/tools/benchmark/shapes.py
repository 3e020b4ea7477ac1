"""Models by name, of random weights; nothing is downloaded.

    vit-b/16, vit-l/16-384      timm's ViTs
    siglip-so400m-384           the tower without its pooling head: 729 tokens, 26 blocks
    clip-l-336                  the 23 blocks that a LLaVA reads: 576 tokens and CLS
    llava-1.5-7b, ...           whole models (see `multimodal`)

Any other name is one of `tokenzoo.tools.model_loading`: timm's, transformers:TYPE, or a folder with a
config.json.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from tokenzoo.errors import BadArgumentError, UnknownNameError
from tokenzoo.tools import model_loading, transformers_loading
from tokenzoo.tools.benchmark import multimodal
from tokenzoo.tools.benchmark.workload import Setting, Sizes, Workload, adapter_of

Named = tuple[str, Mapping[str, Any], Mapping[str, Any]]

_SMALL = {"depth": 6, "embed_dim": 64, "num_heads": 4}
IMAGES: dict[str, Named] = {
    "vit-b/16": ("vit_base_patch16_224", {}, {**_SMALL, "img_size": 112}),
    "vit-l/16-384": ("vit_large_patch16_384", {}, {**_SMALL, "img_size": 112}),
    "siglip-so400m-384": (
        "vit_so400m_patch14_siglip_384",
        {"depth": 26, "global_pool": "", "num_classes": 0},  # the 27th is not read
        {**_SMALL, "img_size": 126},
    ),
    "clip-l-336": ("transformers:clip_vision_model", multimodal.CLIP_L, multimodal.TINY),
}
"""Image encoders: the model's name, its options, and the options that `tiny` replaces."""

NAMES = (*IMAGES, *multimodal.SHAPES)


def load(
    name: str,
    sizes: Sizes | None = None,
    setting: Setting | None = None,
    *,
    video: Path | None = None,
) -> Workload:
    """Make a model by its name, and an input for it.

    Args:
        name: in `NAMES`, or any model that `model_loading.create` knows.
        sizes: sizes that differ from those of the name.
        setting: device, dtype and attention.
        video: a file whose frames a video model reads; None: random pixels.

    Raises:
        UnknownNameError: there is no such model; names the nearest.
        MissingDependencyError: the library that makes it is not installed.
        BadArgumentError: the model cannot be made with these sizes or this setting.
    """
    sizes, setting = sizes or Sizes(), setting or Setting()
    if name in multimodal.SHAPES:
        model, given = multimodal.make(name, sizes, setting, video)
        notes = () if video is None else (f"frames of {video.name}",)
        return Workload(name, model, given, True, sizes, setting, adapter_of(model), notes)
    if sizes.frames is not None or sizes.layers is not None or video is not None:
        raise BadArgumentError(
            f"{name} has no video and no language model whose size could be set: leave out video, frames "
            f"and layers, or use one of {', '.join(multimodal.SHAPES)}"
        )
    if sizes.tiny and name not in IMAGES:
        raise BadArgumentError(f"there is no tiny {name}; there is one of {', '.join(NAMES)}")
    source, standard, small = IMAGES.get(name, (name, {}, {}))
    options = {**standard, **(small if sizes.tiny else {})}
    of_transformers = source.startswith("transformers:") or transformers_loading.is_folder(source)
    if of_transformers:
        options["attn_implementation"] = setting.attention
    elif setting.attention != "sdpa":
        raise BadArgumentError(
            f"attention={setting.attention!r} of {name}, whose library chooses its own attention: leave it "
            "out"
        )
    if sizes.depth is not None:
        options["depth"] = sizes.depth
    cast("Any", torch).manual_seed(0)
    try:
        tower = model_loading.create(source, device=setting.device, **options)
    except UnknownNameError as error:
        raise _unknown(name, error) from error
    model = tower.model.to(setting.torch_dtype)
    adapter = adapter_of(model)
    if tower.size:
        pixels = torch.randn(sizes.batch, *tower.size, generator=torch.Generator().manual_seed(0))
        given = _moved({"images": pixels}, setting)["images"]
        return Workload(name, model, given, False, sizes, setting, adapter)
    given = _moved(transformers_loading.inputs(model, adapter, sizes.batch), setting)
    whole = adapter is not None and adapter.reads_prompts
    notes = ("with a small language model of its own",) if whole else ()
    return Workload(name, model, given, whole, sizes, setting, adapter, notes)


def _moved(given: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    return {
        key: value.to(setting.device, setting.torch_dtype if value.is_floating_point() else None)
        for key, value in given.items()
    }


def _unknown(name: str, error: UnknownNameError) -> UnknownNameError:
    near = difflib.get_close_matches(name, NAMES, n=3, cutoff=0.4)
    return UnknownNameError(f"{error}. The shapes by name are {', '.join(near or NAMES)}")
