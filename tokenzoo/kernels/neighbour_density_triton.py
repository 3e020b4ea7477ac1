"""The K smallest distances of each token in one pass over the others, in Triton.

A program holds the K smallest of a block of rows, and goes through blocks of columns: K times it takes
the smallest distance of each row out of the block and replaces the largest that it holds, if it is
smaller. No distance is ever written to memory.
"""
# pyright: basic, reportArgumentType=false, reportMissingImports=false
# ruff: noqa: ANN001, ANN202, N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenzoo.kernels.triton_launch import device_of, precision, upcast

MOST = 32
"""The largest K; each neighbour costs a pass over every block."""


@triton.jit
def _kernel(
    x, squares, nearest, n, d, image_stride, token_stride, channel_stride,
    K: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    x += image * image_stride
    squares += image * n
    nearest += image * n * K
    slot = tl.arange(0, SLOTS)[None, :]
    column = tl.arange(0, COLUMNS)
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    square_i = tl.load(squares + i, mask=i < n, other=float("inf"))
    # A token that is not finite has an infinite square, and is never read.
    known_i = (square_i < float("inf"))[:, None]
    left = x + i.to(tl.int64)[:, None] * token_stride
    # Slots beyond K are never the largest, so nothing is put there.
    held = tl.where(slot < K, float("inf"), float("-inf")) + tl.zeros([ROWS, SLOTS], tl.float32)
    for first in range(0, n, COLUMNS):
        j = first + column
        square_j = tl.load(squares + j, mask=j < n, other=float("inf"))
        known_j = (square_j < float("inf"))[:, None]
        right = x + j.to(tl.int64)[:, None] * token_stride
        inner = tl.zeros([ROWS, COLUMNS], tl.float32)
        for channel in range(0, d, CHANNELS):
            c = (channel + tl.arange(0, CHANNELS))[None, :]
            a = tl.load(left + c * channel_stride, mask=known_i & (c < d), other=0.0)
            b = tl.load(right + c * channel_stride, mask=known_j & (c < d), other=0.0)
            if UPCAST:
                a, b = a.to(tl.float32), b.to(tl.float32)
            inner = tl.dot(a, tl.trans(b), inner, input_precision=PRECISION)
        distance = square_j[None, :] - 2 * inner
        distance = tl.where(i[:, None] == j[None, :], float("inf"), distance)
        for _ in range(K):
            smallest, place = tl.min(distance, 1, return_indices=True)
            largest, where = tl.max(held, 1, return_indices=True)
            better = (smallest < largest)[:, None] & (slot == where[:, None])
            held = tl.where(better, smallest[:, None], held)
            distance = tl.where(column[None, :] == place[:, None], float("inf"), distance)
    held += square_i[:, None]
    held = tl.maximum(held, 0.0)
    at = nearest + i.to(tl.int64)[:, None] * K + slot
    tl.store(at, held, mask=(i < n)[:, None] & (slot < K))


def nearest_squares(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Compute `tokenzoo.kernels.neighbour_density.nearest_squares` for k up to `MOST`."""
    b, n, d = features.shape
    # Computed in float32, also for half precision, without a copy of the features.
    squares = torch.linalg.vector_norm(features, dim=-1, dtype=torch.float32).square()
    squares = squares.where(squares.isfinite(), torch.inf)
    nearest = squares.new_empty(b, n, k)
    rows = columns = 64
    with device_of(features):
        _kernel[triton.cdiv(n, rows), b](
            features, squares, nearest, n, d, *features.stride(),
            K=k, SLOTS=triton.next_power_of_2(k), ROWS=rows, COLUMNS=columns,
            CHANNELS=128 // features.element_size(),
            PRECISION=precision(), UPCAST=upcast(features),
        )  # fmt: skip
    return nearest, squares
