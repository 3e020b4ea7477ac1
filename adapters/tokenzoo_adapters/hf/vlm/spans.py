"""How many placeholders an image or video has, in the bare model and with fewer tokens: common rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from tokenzoo.errors import AttachError
from tokenzoo_adapters.hf.vlm import anyres
from tokenzoo_adapters.hf.vlm.placeholders import VisualSpan
from tokenzoo_adapters.hf.vlm.spec import SpanCall


def per_image(call: SpanCall) -> list[VisualSpan]:
    """Images or tiles `[images, 3, h, w]`, each with the tokens of its size and the prefix that reaches."""
    n, extra = call.tokens(), call.projected_prefix()
    m, shared = call.plan(n, call.frames), call.plan.over_frames and call.frames > 1
    span = VisualSpan(n + extra, m + extra, fixed=extra, patches=n, shared=shared)
    return [span] * len(call.pixels)


def per_tile(call: SpanCall) -> list[VisualSpan]:
    """Tiles `[rows, tiles, 3, h, w]`. What is all zeros fills up the row of a prompt, and is no tile.

    Where there are only zeros the first is one, as in the model. On the meta device all are tiles.
    """
    n = call.tokens()
    filled = (call.pixels != 0).flatten(2).any(2)
    tiles = filled.numel() if filled.is_meta else int(filled.sum())
    return [VisualSpan(n, call.plan(n), patches=n)] * max(1, tiles)


def per_size(call: SpanCall) -> list[VisualSpan]:
    """Images of sizes `[images, 2]` that are cut into a base crop and a grid of crops (`anyres.py`).

    `batch_num_images` says how many images each prompt has; one of several is a single crop (OneVision).

    Raises:
        AttachError: it does not count the images that were passed.
    """
    n = call.tokens()
    m = call.plan(n)
    cut: Sequence[bool] = [True] * len(call.sizes)
    numbers = call.given.get("batch_num_images")
    if numbers is not None:
        cut = [int(count) == 1 for count in numbers for _ in range(int(count))]
        if len(cut) != len(call.sizes):
            raise AttachError(
                f"batch_num_images counts {len(cut)} images, and {len(call.sizes)} were passed; it is the "
                "number of images of each prompt, as the processor returns it"
            )
    return [
        anyres.visual(call.base.config, (int(size[0]), int(size[1])), crops, n, m)
        for size, crops in zip(call.sizes, cut, strict=True)
    ]


def per_grid(call: SpanCall) -> list[VisualSpan]:
    """Packed patches with a grid `[images, 3]` (time, rows, columns): each slice in time is a unit.

    Raises:
        AttachError: the grids are no tensor.
    """
    return [VisualSpan(t * n, t * call.plan(n, t), units=t, patches=n) for t, n in _slices(call)]


def per_slice(call: SpanCall) -> list[VisualSpan]:
    """As `per_grid`, where words stand between the slices of a video: each has placeholders of its own."""
    return [
        VisualSpan(n, call.plan(n, t), patches=n, shared=call.plan.over_frames and t > 1)
        for t, n in _slices(call)
        for _ in range(t)
    ]


def _slices(call: SpanCall) -> list[tuple[int, int]]:
    """Slices in time of each image or video, and tokens of each of them."""
    if not isinstance(call.sizes, Tensor):
        raise AttachError(
            f"the grids of images are a {type(call.sizes).__name__}; they must be a tensor [images, 3], as "
            "the processor returns it: model.generate(**inputs)"
        )
    rows: list[list[int]] = cast("Any", call.sizes).tolist()
    group = call.spec.group(call.base.config)
    return [(t, h * w // group) for t, h, w in rows]


def pooled_frames(call: SpanCall) -> list[VisualSpan]:
    """Videos `[videos, frames, 3, h, w]` whose frames `apply_pooling` pools, with a newline at the end.

    What is left of a reduced frame is not pooled again. A step over frames reduces pooled ones, if the
    tower has left them whole.
    """
    n, frames = call.tokens(), int(call.pixels.shape[1])
    m = call.plan(n, frames)
    # What the model itself pools a frame to; a subclass may do so in its own way.
    frame = torch.empty(1, n, 1, device="meta")
    pooled = cast("Any", type(call.base)).apply_pooling(call.base, frame).shape[1]
    full = frames * int(pooled) + 1
    if m != n and call.plan(n) == n:  # reduced over frames alone, which are pooled before
        m = call.plan(int(pooled), frames)
    short = full if m == n else frames * m + 1
    return [VisualSpan(full, short, frames, 1, n)] * len(call.pixels)
