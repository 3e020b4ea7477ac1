"""The best partner of each token, without the matrix of all scores.

A maximum over the targets needs only a few rows of scores at a time: on the CPU as many as fit into the
cache, where small images are processed together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokenzoo._core.precision import comparable, precise
from tokenzoo._core.sorting import first_highest
from tokenzoo.kernels.choice import exporting, use_triton

# Scores per block: 1 MiB on the CPU, for the cache; elsewhere 16 MiB an image, to bound the memory.
CACHED, LARGE = 2**18, 2**22
EVERY = slice(None)


def best_match(
    left: Tensor, right: Tensor, *, scale: Tensor | None = None, shift: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Find the highest scale_j * <left_i, right_j> + shift_j of each i, and its j.

    Args:
        left: `[b, a, d]`.
        right: `[b, p, d]`, at least one.
        scale: `[b, p]`, or None for ones.
        shift: `[b, p]`, or None for zeros.

    Returns:
        `([b, a], [b, a])`: the value, float32 or better and finite, and the index. Ties go to the lower
        index; NaN counts as the lowest finite number, an infinity as the nearest finite one.
    """
    given = (left, right, scale, shift)
    if not exporting() and use_triton(*given):
        if torch.compiler.is_compiling():
            return torch.ops.tokenzoo.best_match(*given)
        return _in_triton(*given)
    dtype = torch.promote_types(left.dtype, torch.float32)
    left, right = precise(left), precise(right)
    (b, a, _), p = left.shape, right.shape[1]
    images = blocks(b, a * p, CACHED) if in_cache(left) else [EVERY]
    rows = row_blocks(left, p)
    if len(images) == len(rows) == 1:  # small ones need no blocks
        value, index = _best(left, right, scale, shift)
        return value.to(dtype), index

    def of_images(own: slice) -> tuple[Tensor, Tensor]:
        x, y = left[own], right[own]
        w, c = (None if t is None else t[own] for t in (scale, shift))
        return in_blocks(lambda r: _best(x[:, r], y, w, c), rows, a, 1)

    value, index = in_blocks(of_images, images, b, 0)
    return value.to(dtype), index


def _in_triton(
    left: Tensor, right: Tensor, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run the Triton form: one pass over the targets, no score is written to memory."""
    from tokenzoo.kernels.best_match_triton import best_match

    return best_match(left, right, scale, shift)


_compiled = torch.library.custom_op(
    "tokenzoo::best_match",
    _in_triton,
    mutates_args=(),
    schema="(Tensor left, Tensor right, Tensor? scale, Tensor? shift) -> (Tensor, Tensor)",
)


@_compiled.register_fake  # pyright: ignore[reportUnknownMemberType]
def _like(left: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    """Return empty outputs, for tracing."""
    del others
    value = left.new_empty(left.shape[:2], dtype=torch.float32)
    return value, torch.empty_like(value, dtype=torch.int64)


def in_cache(values: Tensor) -> bool:
    """Whether to use blocks of cache size: on the CPU, not compiled (unrolled loops), not on a GPU."""
    return values.device.type == "cpu" and not (torch.compiler.is_compiling() or exporting())


def row_blocks(rows: Tensor, columns: int) -> list[slice]:
    """Cut `rows [b, a, ...]` so that a block of scores `[rows, columns]` is not too large."""
    return blocks(rows.shape[1], columns, CACHED if in_cache(rows) else LARGE)


def blocks(count: int, each: int, most: int) -> list[slice]:
    """Cut `count` items that have `each` entries into blocks of at most `most` entries, or of one item."""
    if count * each <= most:
        return [EVERY]
    step = max(1, most // each)
    return [slice(start, start + step) for start in range(0, count, step)]


def highest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum of each row of `scores [..., p]`, finite, and its first index."""
    index = first_highest(worst_if_nan(comparable(scores)))
    return worst_if_nan(scores.gather(-1, index[..., None])[..., 0]), index


def worst_if_nan(scores: Tensor) -> Tensor:
    """Replace NaN by the lowest finite number (max would pick it first), infinities by finite ones."""
    return scores.nan_to_num(nan=torch.finfo(scores.dtype).min)


def _best(
    left: Tensor, right: Tensor, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute the definition."""
    scores = left @ right.mT  # [b, a, p]
    if scale is not None:
        scores = scores * scale[:, None]
    if shift is not None:
        scores = scores + shift[:, None]
    return highest(scores)


def in_blocks(
    find: Callable[[slice], tuple[Tensor, Tensor]], parts: list[slice], size: int, dim: int
) -> tuple[Tensor, Tensor]:
    """Run a function on blocks of a dimension of this size, and join the results.

    The results are written to preallocated tensors: small results that stay between large temporary ones
        would
    fragment the memory, which would grow as without blocks.
    """
    first = find(parts[0])
    if len(parts) == 1:
        return first
    shapes = [(*found.shape[:dim], size, *found.shape[dim + 1 :]) for found in first]
    value, index = (found.new_empty(s) for found, s in zip(first, shapes, strict=True))
    for part in parts:
        at = (*[EVERY] * dim, part)
        value[at], index[at] = first if part is parts[0] else find(part)
    return value, index
