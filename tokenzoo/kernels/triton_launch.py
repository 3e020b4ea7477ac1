"""What the Triton kernels ask about the machine when they are launched."""

# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import torch
import triton
from torch import Tensor

device_of = torch.cuda.device_of
"""A kernel runs on the current device; this makes it that of a tensor (and does nothing on the CPU)."""


def precision() -> str:
    """How float32 operands are multiplied: as exactly as torch's own matrices, but in tensor cores."""
    if torch.version.hip:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def upcast(operand: Tensor) -> bool:
    """Whether an operand is cast before a product: the interpreter multiplies the bits of a bfloat16."""
    interpreted = bool(triton.knobs.runtime.interpret)
    return interpreted and operand.dtype == torch.bfloat16
