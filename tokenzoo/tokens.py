"""Tokens: features, and the number of input tokens that each stands for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.precision import UNIT_BITS, exact, precise, rounded
from tokenzoo._core.precision import full_precision as full_precision
from tokenzoo._core.quoting import quote
from tokenzoo._core.tensors import FLOATS, INTS, check_dense, check_dtype
from tokenzoo.errors import BadArgumentError


def shape_of(value: object) -> object:
    """Return the shape of a tensor, or the name of another type, for messages."""
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def norm(vectors: Tensor) -> Tensor:
    """Return the Euclidean length of vectors `[..., d]`, in `precise` precision: `[...]`."""
    return torch.linalg.vector_norm(precise(vectors), dim=-1)  # pyright: ignore


def unit(vectors: Tensor) -> Tensor:
    """Scale vectors `[..., d]` to length 1, in `precise` precision; a zero vector stays zero.

    If that is more than their own precision, they are rounded to fixed point, so that inner products are
    exact.
    """
    given, vectors = vectors.dtype, precise(vectors)
    length = norm(vectors)[..., None].clamp_min(1e-12)
    if not exact(vectors) or given == torch.float64:
        return vectors / length
    if vectors.requires_grad:
        return rounded(vectors / length, 2.0**-UNIT_BITS)
    # The same in place, on the copy that `precise` has made: fresh memory costs more than the arithmetic.
    return vectors.mul_(2.0**UNIT_BITS / length).round_().mul_(2.0**-UNIT_BITS)


@dataclass(frozen=True)
class Tokens:
    """Features and masses of tokens. Letters: b batch, n tokens, c channels.

    Attributes:
        x: features `[b, n, c]`, prefix tokens first.
        mass: number of input tokens that each one stands for `[b, n]`, float32; 1 for prefix tokens.
        prefix: number of leading tokens (CLS, registers) that are never touched.
        held: `[b, n]` bool, tokens that a matcher protected at an earlier site; None: no site has.
    """

    x: Tensor
    mass: Tensor
    prefix: int = 0
    held: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, *, mass: Tensor | None = None, prefix: int = 0) -> Tokens:
        """Wrap features `[b, n, c]`; without a mass, each token has mass 1.

        Raises:
            BadArgumentError: the shapes do not fit, the features are not floating-point, or a mass is not
                positive.
        """
        check_dense("x", x)
        check_dense("mass", mass)
        if not torch.is_tensor(x) or x.ndim != 3 or x.shape[1] < 1 or x.shape[2] < 1:
            raise BadArgumentError(
                f"x has shape {shape_of(x)}; tokens are a tensor [batch, tokens, channels] with at least "
                "one token and one channel: add a batch dimension with x[None], or flatten a grid with "
                "x.flatten(1, 2)"
            )
        check_dtype("x", x, FLOATS, "features are floating-point numbers of 16 bits or more")
        if type(prefix) is not int or not 0 <= prefix < x.shape[1]:
            raise BadArgumentError(
                f"prefix={quote(prefix)} with {x.shape[1]} tokens; it counts the CLS and register tokens "
                f"at the front: an int from 0 to {x.shape[1] - 1}"
            )
        if mass is None:
            mass = torch.ones(x.shape[:2], dtype=torch.float32, device=x.device)
        elif not torch.is_tensor(mass) or mass.shape != x.shape[:2]:
            raise BadArgumentError(
                f"mass has shape {shape_of(mass)}; a tensor with one number per token is needed: "
                f"{tuple(x.shape[:2])}"
            )
        elif mass.dtype not in (*FLOATS, *INTS) or mass.device != x.device:
            raise BadArgumentError(
                f"mass has dtype {mass.dtype} on {mass.device}; it holds real numbers, on the device of x, "
                f"{x.device}: pass mass.float().to(x.device)"
            )
        elif mass.device.type != "meta" and not bool(((mass > 0) & mass.isfinite()).all()):
            raise BadArgumentError(
                "mass has values that are <= 0, infinite or NaN; a token stands for a positive amount"
            )
        mass = full_precision(mass) if mass.is_floating_point() else mass.float()
        return cls(x, mass, prefix)

    @property
    def patches(self) -> Tokens:
        """The patch tokens, as views."""
        if self.prefix == 0:
            return self
        p = self.prefix
        return Tokens(
            self.x[:, p:], self.mass[:, p:], 0, None if self.held is None else self.held[:, p:]
        )

    def with_prefix_of(self, whole: Tokens) -> Tokens:
        """Put the prefix tokens of `whole` back in front of these patch tokens."""
        p = whole.prefix
        if p == 0:
            return self
        held = self.held
        if held is not None:
            held = torch.cat([held.new_zeros(held.shape[0], p), held], 1)
        x = torch.cat([whole.x[:, :p], self.x], 1)
        return Tokens(x, torch.cat([whole.mass[:, :p], self.mass], 1), p, held)
