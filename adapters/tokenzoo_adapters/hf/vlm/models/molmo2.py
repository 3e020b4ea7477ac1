"""Molmo 2: two views of an image, whose patches are pooled by indices that the processor made of the grid.

The pooling reads two layers of the tower at these indices, so the tower is not followed: pooled tokens are
reduced, those of the whole image and those of its crops each for themselves. The model splits the tokens by
the grids of all images: it is given grids with as many as are left.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from tokenzoo.errors import AttachError
from tokenzoo_adapters.hf.names import LAST
from tokenzoo_adapters.hf.vlm.own_sizes import own_sizes
from tokenzoo_adapters.hf.vlm.placeholders import VisualSpan
from tokenzoo_adapters.hf.vlm.spans import per_grid
from tokenzoo_adapters.hf.vlm.spec import Modality, SpanCall, VisionLanguageSpec
from tokenzoo_adapters.hf.vlm.unfollowed_tower import Grids, ProjectedRows, ProjectorPass


def views(call: SpanCall) -> list[VisualSpan]:
    """Images of grids `[images, 4]`: rows and columns of the whole image, and of its crops together.

    Raises:
        AttachError: the grids are no tensor.
    """
    if not isinstance(call.sizes, Tensor):
        raise AttachError(
            f"the grids of images are a {type(call.sizes).__name__}; they must be a tensor [images, 4], as "
            "the processor returns it: model.generate(**inputs)"
        )
    tokens = [rows * columns for rows, columns in _pairs(call.sizes)]
    return [VisualSpan(n, call.plan(n), patches=n) for n in tokens]


def _pairs(grids: Tensor) -> list[tuple[int, int]]:
    """Rows and columns of each view, out of `[images, 4]`; without those that have no tokens."""
    flat: list[list[int]] = cast("Any", grids).reshape(-1, 2).tolist()
    return [(rows, columns) for rows, columns in flat if rows * columns]


def take(
    base: Any, state: ProjectorPass, args: tuple[Any, ...], output: Any
) -> tuple[Tensor, Grids]:
    """The pooled tokens `[r, c]`; the frames of a video are one grid below the other."""
    del base, args
    if state.sizes is None:
        raise AttachError("the projector was called on its own: call get_image_features")
    pairs = _pairs(state.sizes)
    if state.frames is not None:
        frames = zip(pairs, state.frames, strict=True)
        pairs = [(rows // t, columns) for (rows, columns), t in frames for _ in range(t)]
    return getattr(output, LAST), tuple(pairs)


def put(state: ProjectorPass, output: Any, parts: tuple[Tensor, ...]) -> Any:
    """The output with what is left; as a grid, what is left of a view is one row."""
    sizes, state.sizes = state.sizes, None
    if sizes is not None:
        counts = [len(part) for part in parts]
        if state.frames is not None:
            several = iter(counts)
            counts = [sum(next(several) for _ in range(t)) for t in state.frames]
        left, there = iter(counts), sizes.view(-1, 2)
        for view in there:
            if int(view[0]) * int(view[1]):
                view.copy_(torch.tensor([1, next(left)]))
    setattr(output, LAST, torch.cat(parts))
    return output


MOLMO2 = VisionLanguageSpec(
    folder="molmo2",
    whole="Molmo2ForConditionalGeneration",
    bare="Molmo2Model",
    modalities=(
        Modality("pixel_values", "image_token_id", views, sizes="image_grids"),
        Modality(
            "pixel_values_videos",
            "image_token_id",
            per_grid,
            features="get_video_features",
            sizes="video_grids",
        ),
    ),
    assembly=(own_sizes,),
    unfollowed=ProjectedRows(take, put),
)
