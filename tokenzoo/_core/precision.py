"""The precision of scores: equal tokens have equal scores, independent of position and batch.

A sum of floating-point numbers depends on their order, and a matrix product adds up in another order for
another batch, another number of threads, and at the edge of a matrix. Two equal tokens then differ in the
last digit, and which of them is higher depends on the rest of the batch. Therefore, on the CPU,

    features are rounded to fixed point    `fixed_point`, `unit`: their products need fewer than 53 bits
    scores are computed in float64         `precise`: sums of such products are exact, in any order
    scores are rounded for comparisons     `comparable`: removes differences in the rounding of exp() etc.

On other devices, and in exported programs, all is float32: docs/decisions/0009.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = 24
"""Binary digits of a component: |a|^2 + |b|^2 - 2ab of such vectors has 52."""

UNIT_BITS = 26
"""Binary digits of a component of a unit vector: products of such vectors have 52."""

SUM_BITS = 40
"""Binary digits after the point of a value that is added up: sums below 2 ** 12 have 52."""

SCORE_BITS = 25
"""Binary digits of a compared score, one more than float32 has; the cosine of two copies rounds to 1."""


def full_precision(values: Tensor) -> Tensor:
    """Return `values` in at least float32: scores, masses and densities need it."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def exporting() -> bool:
    """Whether torch.export or torch.jit.trace runs, whose programs have operations of torch only."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def transformed() -> bool:
    """Whether this runs inside a transform of torch.func (vmap, grad, jacrev), also of a compiled one.

    There, a tensor can stand for several: it has no memory that a kernel could read, and tensors made
    outside of the transform cannot be written to.
    """
    return torch._C._functorch.maybe_current_level() is not None  # pyright: ignore


# As torch.compiler.assume_constant_result does, which would import the compiler: torch enters a transform
# while it traces one, and compiles what it has traced anew for another.
transformed._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def exact(values: Tensor) -> bool:
    """Whether scores of such values are computed in float64: on the CPU, not in exported programs."""
    return values.device.type == "cpu" and not exporting()


def precise(values: Tensor) -> Tensor:
    """Return `values` in float64 if `exact`, otherwise in at least float32."""
    return values.double() if exact(values) else full_precision(values)


def comparable(scores: Tensor) -> Tensor:
    """Return `scores` rounded for comparison: to `SCORE_BITS` digits if they are float64."""
    if scores.dtype != torch.float64:
        return scores
    # Dekker's splitting gives the leading digits in three operations, and NaN where one overflows.
    large = scores * (2.0 ** (53 - SCORE_BITS) + 1)
    leading = large - (large - scores)
    return torch.where(leading.isnan(), scores, leading)


def summable(values: Tensor) -> Tensor:
    """Round values >= 0, if `exact`, so that sums of them below 2 ** 12 are exact in any order.

    Values in float64 are overwritten.
    """
    if not exact(values):
        return values
    # Next to this number the digits of a float64 end there.
    shift = 1.5 * 2.0 ** (52 - SUM_BITS)
    return precise(values).add_(shift).sub_(shift)


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
    # A power of two, so that only the digits below it are lost.
    digit = longest.clamp_min(1e-150).log2().ceil().exp2() * 2.0**-BITS
    return rounded(vectors, digit)


def rounded(values: Tensor, digit: float | Tensor) -> Tensor:
    """Round `values` to multiples of a power of two; its gradient is the identity."""
    nearest = (values.detach() / digit).round() * digit
    return values + (nearest - values).detach() if values.requires_grad else nearest
