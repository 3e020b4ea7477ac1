"""The density of the neighbourhood of each token.

It needs the K smallest of each row of the distances between n tokens. Three forms find them:

    _plain                  rows of distances, as written in a textbook: differentiable, exportable
    _by_triangle            on the CPU: half the distances, in one buffer; memory linear in n
    ..._triton              one pass over the tokens; no distance is written to memory
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenzoo._core.precision import full_precision
from tokenzoo.kernels.choice import exporting, plain, use_triton

# Up to this many tokens, the plain form computes all distances of an image in one tensor.
WHOLE = 2048


def neighbour_density(features: Tensor, k: int, tau: float | None) -> Tensor:
    """Average a Gaussian of the distance to the K nearest other tokens (EvoPrune, section 3.4).

    density_i = mean over the K nearest k of exp(-||v_i - v_k||^2 / tau^2)

    Args:
        features: `[b, n, d]`.
        k: number of neighbours, not including the token itself; at most n - 1 are used.
        tau: bandwidth, in the units of the features; None: for each image the root mean square distance
            of its tokens to these neighbours, so that the density does not depend on the scale.

    Returns:
        `[b, n]` in [0, 1]: near 1 in a dense region, near 0 for an isolated token. A token with NaN
        features has density 0 and is not a neighbour as long as there are others. A single token has
        density 0.
    """
    n = features.shape[1]
    k = min(k, n - 1)
    if k < 1:
        return full_precision(features.new_zeros(features.shape[:2]))
    nearest, squares = nearest_squares(features, k)
    if tau is not None:
        return (-nearest / tau**2).exp().mean(-1)
    finite = nearest.isfinite()
    total = nearest.where(finite, 0).sum((1, 2), keepdim=True)
    square = total / finite.sum((1, 2), keepdim=True).clamp_min(1)
    # If all tokens are equal, the distances are rounding errors, and the density is 1.
    error = max(1e-6, (features.shape[-1] + 32) * torch.finfo(nearest.dtype).eps)
    floor = squares.where(squares.isfinite(), 0).mean(-1)[:, None, None] * error
    return (-nearest / torch.maximum(square, floor).clamp_min(1e-30)).exp().mean(-1)


def nearest_squares(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the squared distances of each token to its k nearest others, in any order.

    Args:
        features: `[b, n, d]`.
        k: how many, from 1 to n - 1.

    Returns:
        `([b, n, k], [b, n])`: the squared distances, and the squared lengths of the tokens; inf for a token
        whose length is not finite: it is far from all others.
    """
    if plain(features):
        return _plain(features, k)
    if torch.compiler.is_compiling():
        return torch.ops.tokenzoo.nearest_squares(features, k)
    return _fastest(features, k)


def _fastest(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Run the form for the device of the features, without gradients."""
    if use_triton(features):
        from tokenzoo.kernels import neighbour_density_triton as triton_form

        if k <= triton_form.MOST:
            return triton_form.nearest_squares(features, k)
    # Rows of 64 k: where they are that long, torch finds the k smallest with a heap.
    block = max(256, 64 * k)
    if features.device.type == "cpu" and features.shape[1] > block:
        return _by_triangle(*_known(features), k, block)
    return _plain(features, k)


# One operation for torch.compile, which would unroll the loop and not reuse the buffer.
_compiled = torch.library.custom_op(
    "tokenzoo::nearest_squares",
    _fastest,
    mutates_args=(),
    schema="(Tensor features, int k) -> (Tensor, Tensor)",
)


@_compiled.register_fake  # pyright: ignore[reportUnknownMemberType]
def _like(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return empty outputs, for tracing."""
    b, n, _ = features.shape
    dtype = torch.promote_types(features.dtype, torch.float32)
    return features.new_empty((b, n, k), dtype=dtype), features.new_empty((b, n), dtype=dtype)


def _known(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return features and squared lengths; zeros and infinity for a token whose length is not finite."""
    features = full_precision(features)
    squares = features.square().sum(-1)  # [b, n]
    known = squares.isfinite()
    return features.where(known[..., None], 0), squares.where(known, torch.inf)


def _plain(features: Tensor, k: int, whole: int = WHOLE) -> tuple[Tensor, Tensor]:
    """Compute the reference, in blocks of rows that bound the memory."""
    features, squares = _known(features)
    n = features.shape[1]
    if n <= whole:
        nearest = _nearest_of(features, features, squares, 0, k)
    else:
        step = max(1, whole * whole // n)
        parts = [
            _nearest_of(features[:, start : start + step], features, squares, start, k)
            for start in range(0, n, step)
        ]
        nearest = torch.cat(parts, 1)
    return (nearest + squares[..., None]).clamp_min(0), squares


def _nearest_of(rows: Tensor, features: Tensor, squares: Tensor, start: int, k: int) -> Tensor:
    """Return the k smallest |b|^2 - 2ab of rows a, the tokens from `start` on: `[b, rows, k]`."""
    # ||a - b||^2 = |a|^2 + |b|^2 - 2ab; |a|^2 does not change the order, and is added to K values only.
    distance = torch.baddbmm(squares[:, None], rows, features.mT, alpha=-2)  # [b, rows, n]
    if exporting():  # ONNX cannot write to a view
        place = torch.arange(features.shape[1], device=features.device)
        own = place[start : start + rows.shape[1], None] == place
        distance = distance.masked_fill(own, torch.inf)
    else:
        distance.diagonal(offset=start, dim1=1, dim2=2).fill_(torch.inf)
    return _smallest(distance, k)


def _by_triangle(features: Tensor, squares: Tensor, k: int, block: int) -> tuple[Tensor, Tensor]:
    """Compute the same with each distance once, in one buffer `[block + k, n + k]`.

    A block of rows is compared with itself and all later tokens. Its rows need their k smallest values,
    and so do the columns of the later tokens; k extra columns and k extra rows hold the smallest so far.
    """
    b, n, _ = features.shape
    nearest = squares.new_full((b, n, k), torch.inf)
    buffer = squares.new_empty((block + k) * (n + k))
    for own, square, found in zip(features, squares, nearest, strict=True):
        for start in range(0, n, block):
            stop = min(start + block, n)
            rows, columns = stop - start, n - start
            grid = buffer[: (rows + k) * (columns + k)].view(rows + k, columns + k)
            distance = grid[:rows, :columns]
            torch.addmm(
                square[start:], own[start:stop], own[start:].mT, alpha=-2, out=distance
            ).add_(square[start:stop, None])
            distance.diagonal().fill_(torch.inf)
            grid[:rows, columns:] = found[start:stop]
            found[start:stop] = _smallest(grid[:rows], k)
            if stop < n:
                grid[rows:, rows:columns] = found[stop:].mT
                found[stop:] = _smallest(grid[:, rows:columns].mT, k)
    return nearest.clamp_min_(0), squares


def _smallest(values: Tensor, k: int) -> Tensor:
    """Return the k smallest of each row of `values [..., n]`, ascending: `[..., k]`."""
    n = values.shape[-1]
    if values.device.type == "cpu" and 24 * k < n < 64 * k:
        # torch uses a heap only where 64 k <= n, which on the CPU is two to three times as fast:
        # padding with infinities makes the rows long enough; more padding than that would not pay.
        values = F.pad(values, (0, 64 * k - n), value=torch.inf)
    return values.topk(k, dim=-1, largest=False).values
