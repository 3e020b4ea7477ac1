"""Tensors from callers are dense and of the usual dtypes; values of some of the tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from tokenzoo.errors import BadArgumentError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
NUMBERS = (*FLOATS, *INTS, torch.complex64, torch.complex128)


def check_dense(name: str, value: object) -> None:
    """Raise if this is a nested, sparse, quantised, masked or uninitialised tensor.

    A value that is not a tensor passes: the check of its shape refuses it.

    Raises:
        BadArgumentError: names the kind of tensor, and how to make it dense.
    """
    if not isinstance(value, Tensor):
        return
    found, do = "", ""
    if not torch.compiler.is_compiling() and is_lazy(value):  # torch.compile cannot trace is_lazy
        found, do = "not initialised", "run its module once"
    elif value.is_nested:
        found, do = "nested", f"pass {name}.to_padded_tensor(0.0), or one image at a time"
    elif value.is_quantized:
        found, do = "quantised", f"pass {name}.dequantize()"
    elif type(value).__name__ == "MaskedTensor":  # compared by name, without importing its module
        found, do = "a MaskedTensor", f"pass {name}.get_data()"
    elif value.layout is not torch.strided:
        found, do = f"of the layout {value.layout}", f"pass {name}.to_dense()"
    if found:
        raise BadArgumentError(f"{name} is {found}; it must be a dense tensor: {do}")


def check_dtype(name: str, value: Tensor, dtypes: Sequence[torch.dtype], kind: str) -> None:
    """Raise unless a tensor has one of these dtypes.

    Raises:
        BadArgumentError: names the dtype, and the kind that is allowed.
    """
    if value.dtype not in dtypes:
        raise BadArgumentError(f"{name} has dtype {value.dtype}; {kind}: pass {name}.float()")


def holds(dtype: torch.dtype, number: float) -> bool:
    """Whether a dtype can represent a number; floating-point dtypes represent infinities and NaN, too."""
    if dtype is torch.bool:
        return number in (0, 1)
    if not (dtype.is_floating_point or dtype.is_complex):
        info = torch.iinfo(dtype)
        return info.min <= number <= info.max
    most = torch.finfo(dtype).max
    return -most <= number <= most or (isinstance(number, float) and not math.isfinite(number))


def gather_tokens(value: Tensor, index: Tensor, axis: int) -> Tensor:
    """Gather tokens of `[b, n]`, `[b, h, n]`, or four dimensions with n at `axis`, at `index [b, m]`."""
    if value.ndim == 2:
        return value.gather(1, index)
    if value.ndim == 3:
        return value.gather(2, index[:, None].expand(-1, value.shape[1], -1))
    at = index[:, None, :, None] if axis == 2 else index[:, None, None]
    size = [-1, *value.shape[1:]]
    size[axis] = -1
    return value.gather(axis, at.expand(size))
