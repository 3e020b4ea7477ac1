"""The best target of each source in one pass over the targets, in Triton.

A program holds the highest score of each of its sources and its index, and iterates over blocks of targets
in order: only a higher score replaces it, so ties go to the lower index.
"""
# pyright: basic, reportArgumentType=false, reportMissingImports=false
# ruff: noqa: ANN001, ANN202, N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenzoo.kernels.triton_launch import device_of, precision, upcast


@triton.jit
def _kernel(
    left, right, scale, shift, value, index, a, p, d,
    left_image, left_token, left_channel, right_image, right_token, right_channel,
    SCALED: tl.constexpr, SHIFTED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    largest = 3.4028234663852886e38  # the largest float32
    image = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    left += image * left_image + i.to(tl.int64)[:, None] * left_token
    right += image * right_image
    best = tl.full([ROWS], float("-inf"), tl.float32)
    best_j = tl.zeros([ROWS], tl.int32)
    for first in range(0, p, COLUMNS):
        j = first + tl.arange(0, COLUMNS)
        target = right + j.to(tl.int64)[:, None] * right_token
        scores = tl.zeros([ROWS, COLUMNS], tl.float32)
        for channel in range(0, d, CHANNELS):
            c = (channel + tl.arange(0, CHANNELS))[None, :]
            x = tl.load(left + c * left_channel, mask=(i < a)[:, None] & (c < d), other=0.0)
            y = tl.load(target + c * right_channel, mask=(j < p)[:, None] & (c < d), other=0.0)
            if UPCAST:
                x, y = x.to(tl.float32), y.to(tl.float32)
            scores = tl.dot(x, tl.trans(y), scores, input_precision=PRECISION)
        if SCALED:
            scores *= tl.load(scale + image * p + j, mask=j < p, other=0.0)[None, :]
        if SHIFTED:
            scores += tl.load(shift + image * p + j, mask=j < p, other=0.0)[None, :]
        scores = tl.where(scores != scores, -largest, scores)
        scores = tl.minimum(tl.maximum(scores, -largest), largest)
        # Below every score: there is no target at this index.
        scores = tl.where((j < p)[None, :], scores, float("-inf"))
        highest, place = tl.max(scores, 1, return_indices=True)
        better = highest > best
        best = tl.where(better, highest, best)
        best_j = tl.where(better, first + place, best_j)
    at = image * a + i
    tl.store(value + at, best, mask=i < a)
    tl.store(index + at, best_j.to(tl.int64), mask=i < a)


def best_match(
    left: Tensor, right: Tensor, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute `tokenzoo.kernels.best_match.best_match`."""
    (b, a, d), p = left.shape, right.shape[1]
    if left.dtype != right.dtype:
        left, right = left.float(), right.float()
    scale, shift = (None if w is None else w.float().contiguous() for w in (scale, shift))
    value = torch.empty(b, a, dtype=torch.float32, device=left.device)
    index = torch.empty_like(value, dtype=torch.int64)
    rows = columns = 64
    with device_of(left):
        _kernel[triton.cdiv(a, rows), b](
            left, right, left if scale is None else scale, left if shift is None else shift,
            value, index, a, p, d, *left.stride(), *right.stride(),
            SCALED=scale is not None, SHIFTED=shift is not None, ROWS=rows, COLUMNS=columns,
            CHANNELS=128 // left.element_size(), PRECISION=precision(), UPCAST=upcast(left),
        )  # fmt: skip
    return value, index
