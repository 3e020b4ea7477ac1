"""The precision of numbers that decide: equal tokens have equal scores, wherever they stand.

A sum of floating-point numbers depends on their order, and a matrix product adds up in another order for
another batch, another number of threads, and at the edge of a matrix. Two equal tokens then differ in the
last digit, and which of them is higher depends on the rest of the batch. So on the CPU

    features have a fixed point     `fixed_point`, `unit`: their products need fewer than 53 bits,
    what follows is float64         `precise`: it adds such products up exactly, in any order,
    scores are compared rounded     `comparable`: what exp() and the like round differently is gone.

Elsewhere, and in exported programs, it is all float32: docs/decisions/0009.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = 24
"""Binary digits of a component: |a|^2 + |b|^2 - 2ab of such vectors has 52."""

UNIT_BITS = 26
"""The same of vectors of length 1, whose products are no longer than 1: they have 52."""

SCORE_BITS = 25
"""Digits of a score that is compared: one more than float32 has. A copy's cosine is 1 in so many."""


def full_precision(values: Tensor) -> Tensor:
    """Return `values` in at least float32: scores, masses and densities are never computed in half."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def exporting() -> bool:
    """Whether a program is made that runs where this library is not: of torch's own operations only."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def exact(values: Tensor) -> bool:
    """Whether sums of such values are computed in float64: on the CPU, and not in an exported program."""
    return values.device.type == "cpu" and not exporting()


def precise(values: Tensor) -> Tensor:
    """Return `values` in float64 where decisions are computed in it, in at least float32 elsewhere."""
    return values.double() if exact(values) else full_precision(values)


def comparable(scores: Tensor) -> Tensor:
    """Return `scores` as they are compared: those of float64 with `SCORE_BITS` digits."""
    if scores.dtype != torch.float64:
        return scores
    # Dekker's splitting: the first digits of a number, in three operations without a view of its bits.
    large = scores * (2.0 ** (53 - SCORE_BITS) + 1)
    return torch.where(large.isfinite(), large - (large - scores), scores)


def fixed_point(vectors: Tensor) -> Tensor:
    """Round vectors `[b, n, d]` to `BITS` binary digits below the longest of their image.

    Returns:
        `[b, n, d]`, in float64; where `exact` is False, the vectors in at least float32.
    """
    vectors = precise(vectors)
    if not exact(vectors):
        return vectors
    length = vectors.detach().square().sum(-1)
    longest = length.where(length.isfinite(), 0).amax(-1)[:, None, None].sqrt()
    # A power of two, so that nothing but the digits below it is lost.
    digit = longest.clamp_min(1e-150).log2().ceil().exp2() * 2.0**-BITS
    return rounded(vectors, digit)


def rounded(values: Tensor, digit: float | Tensor) -> Tensor:
    """Round `values` to multiples of a power of two; to gradients it is the identity."""
    nearest = (values.detach() / digit).round() * digit
    return values + (nearest - values).detach() if values.requires_grad else nearest
