"""MiniCPM-V 4.6: packed tiles, and a module amid its tower that joins windows of 2 x 2 patches to one.

Fewer patches would not form windows, so the tower is not followed: tokens are reduced after the merger,
which joins patches a second time, tile by tile.
"""

from __future__ import annotations

from math import prod
from typing import Any, cast

import torch
from torch import Tensor

from tokenzoo.errors import AttachError
from tokenzoo_adapters.hf.vlm.placeholders import VisualSpan
from tokenzoo_adapters.hf.vlm.spec import Modality, SpanCall, VisionLanguageSpec
from tokenzoo_adapters.hf.vlm.unfollowed_tower import Grids, ProjectedRows, ProjectorPass

MODE = "downsample_mode"


def tiles(call: SpanCall) -> list[VisualSpan]:
    """Tiles of sizes `[tiles, 2]` in patches: each is an image in the prompt, with marks around it.

    Raises:
        AttachError: the sizes are no tensor.
    """
    if not isinstance(call.sizes, Tensor):
        raise AttachError(
            f"the sizes of tiles are a {type(call.sizes).__name__}; they must be a tensor [tiles, 2], as "
            "the processor returns it: model.generate(**inputs)"
        )
    config = call.base.config
    in_tower = 1 if getattr(config, MODE) == "4x" else 4
    joins = in_tower * prod(config.merge_kernel_size) ** config.merger_times
    rows: list[list[int]] = cast("Any", call.sizes).tolist()
    tokens = [height * width // joins for height, width in rows]
    return [VisualSpan(n, call.plan(n), patches=n) for n in tokens]


def take(
    base: Any, state: ProjectorPass, args: tuple[Any, ...], output: Any
) -> tuple[Tensor, Grids]:
    """The merger's tiles `[n, c]` as one sequence; its second argument says how large they were."""
    del state
    config = base.config
    down, across = (side**config.merger_times for side in config.merge_kernel_size)
    sizes: list[list[int]] = args[1].tolist()
    return torch.cat(list(output)), tuple((h // down, w // across) for h, w in sizes)


def put(state: ProjectorPass, output: Any, parts: tuple[Tensor, ...]) -> list[Tensor]:
    """What is left of each tile."""
    del state, output
    return list(parts)


MINICPMV4_6 = VisionLanguageSpec(
    folder="minicpmv4_6",
    whole="MiniCPMV4_6ForConditionalGeneration",
    bare="MiniCPMV4_6Model",
    modalities=(
        Modality("pixel_values", "image_token_id", tiles, sizes="target_sizes"),
        Modality(
            "pixel_values_videos",
            "video_token_id",
            tiles,
            features="get_video_features",
            sizes="target_sizes_videos",
        ),
    ),
    projector="merger",
    settings=(MODE,),
    unfollowed=ProjectedRows(take, put),
)
