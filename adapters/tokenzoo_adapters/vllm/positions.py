"""Where the tokens that are left of an image are, for Qwen's rotary embedding with three axes (M-RoPE).

Prompts are planned before their images are encoded, and which tokens are left is known after that. So the
text has its positions of the whole prompt from the start, and all placeholders of an image have that of its
first token. The encoded image carries the rows and columns of its tokens as further channels, and they are
added when a part of the prompt is read, in whatever parts that happens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenzoo.errors import AttachError
from tokenzoo_adapters.hf.vlm import mrope
from tokenzoo_adapters.hf.vlm.placeholders import VisualSpan

BASE = 128
"""Coordinates are two digits to this base: bfloat16 holds integers up to 256."""

CHANNELS = 4


def with_coordinates(features: Tensor, left: Tensor, columns: int) -> Tensor:
    """Features of an image `[m, c]` with the coordinates of its tokens: `[m, c + CHANNELS]`.

    Args:
        features: of the tokens that are left.
        left: which they are, in raster order, `[m]`.
        columns: of the image, in tokens.

    Raises:
        AttachError: a side of the image has more tokens than two digits can count.
    """
    row, column = left // columns, left % columns
    largest = max(int(row.max()), int(column.max()))
    if largest >= BASE * BASE:
        raise AttachError(
            f"an image with {largest + 1} tokens along one side; {BASE * BASE} can be counted"
        )
    digits = torch.stack([row // BASE, row % BASE, column // BASE, column % BASE], 1)  # [m, 4]
    return torch.cat([features, digits.to(features)], 1)


def coordinates(digits: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns `[m]` out of their digits `[m, CHANNELS]`."""
    high_row, low_row, high_column, low_column = digits.long().unbind(1)
    return high_row * BASE + low_row, high_column * BASE + low_column


def planned_positions(
    model: Any,
    ids: Sequence[int],
    token: int,
    grids: Sequence[Sequence[int]],
    counts: Sequence[int],
) -> tuple[Tensor, int]:
    """Positions `[3, n]` of a prompt whose images are not encoded, and what is added after the prompt.

    Args:
        model: the bare model of transformers; it has `get_rope_index`.
        ids: of the prompt, with the planned placeholders.
        token: the placeholder.
        grids: of each image, slices, rows and columns of its patches.
        counts: of each image, its placeholders.
    """
    row = torch.tensor([list(ids)])
    group = int(model.config.vision_config.spatial_merge_size) ** 2
    spans = [VisualSpan(t * h * w // group, m) for (t, h, w), m in zip(grids, counts, strict=True)]
    given: Mapping[str, Any] = {"input_ids": row, "mm_token_type_ids": (row == token).long()}
    if spans:
        given = {**given, "image_grid_thw": torch.tensor([list(grid) for grid in grids])}
    kept = {token: [torch.zeros(m, dtype=torch.int64) for m in counts]}
    visuals = {token: spans}
    if not spans:
        visuals, kept = {}, {}
    found, after = mrope.positions(model, given, visuals, kept)
    return found[:, 0], int(after[0, 0]) - len(ids)


def recomputed(
    ids: Tensor, token: int, embeddings: Sequence[Tensor], positions: Tensor, computed: int
) -> tuple[list[Tensor], Tensor, int]:
    """Place the tokens of the images of the part of a prompt that is read next.

    Nothing is counted from what was placed before, so a part may be read again, and an image in parts.

    Args:
        ids: of the whole prompt `[n]`.
        token: the placeholder.
        embeddings: of the images in this part `[m, c + CHANNELS]` each, or of what of them is in it.
        positions: of the whole prompt `[3, n]`; on the first axis those of images are right already.
        computed: how many tokens of the prompt were read before.

    Returns:
        The embeddings without coordinates, the positions, and what is added after the prompt.
    """
    new, features = positions.clone(), list[Tensor]()
    places = (ids == token).nonzero()[:, 0]
    places = places[places >= computed]
    at = 0
    for embedding in embeddings:
        here = places[at : at + len(embedding)].to(new.device)
        rows, columns = coordinates(embedding[:, -CHANNELS:].to(new.device))
        start = new[0, here]
        new[1, here], new[2, here] = (start + rows).to(new.dtype), (start + columns).to(new.dtype)
        features.append(embedding[:, :-CHANNELS])
        at += len(embedding)
    return features, new, int(new[:, -1].max()) + 1 - new.shape[1]
