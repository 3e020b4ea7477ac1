"""The choice of the form of a kernel: plain torch, or Triton for tensors on a GPU.

The environment variable TOKENZOO_KERNELS, read once at import, is "auto" (the default), "torch" or
"triton"; `forced` overrides it for the length of a `with` block. Triton itself is imported when its form
first runs.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor

from tokenzoo._core.precision import exporting as exporting
from tokenzoo._core.precision import transformed as transformed
from tokenzoo._core.validation import check_choice
from tokenzoo.errors import BadArgumentError

VARIABLE = "TOKENZOO_KERNELS"
FORMS = ("auto", "torch", "triton")

_installed = find_spec("triton") is not None
_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
_form = os.environ.get(VARIABLE, "auto")


@contextmanager
def forced(form: str) -> Generator[None]:
    """Run all kernels of this process in one form: "torch", "triton", or "auto".

    Raises:
        BadArgumentError: another value.
    """
    global _form
    before, _form = _form, check_choice("form", form, *FORMS)
    try:
        yield
    finally:
        _form = before


def use_triton(*tensors: Tensor | None) -> bool:
    """Whether the Triton form runs on these tensors; None is ignored.

    It computes in float32 and without gradients: never for float64, with gradients, or inside a transform
        of
    torch.func.

    Raises:
        BadArgumentError: TOKENZOO_KERNELS has no such value; or it is "triton", and Triton is not installed
            or cannot run on the device of the tensors.
    """
    form = check_choice(VARIABLE, _form, *FORMS)
    given = [tensor for tensor in tensors if tensor is not None]
    if form == "torch" or wants_gradients(*given) or transformed():
        return False
    on_gpu = all(tensor.is_cuda for tensor in given)
    if form == "triton":
        if not _installed:
            raise BadArgumentError(
                f"{VARIABLE}='triton', but Triton is not installed; install it, or use 'auto'"
            )
        if not on_gpu and not _interpreted:
            raise BadArgumentError(
                f"{VARIABLE}='triton' with tensors on {_devices(given)}; Triton runs on CUDA devices, and "
                "elsewhere only in its interpreter (TRITON_INTERPRET=1): use 'auto'"
            )
    elif not (_installed and on_gpu):
        return False
    return all(tensor.dtype != torch.float64 for tensor in given)


def wants_gradients(*tensors: Tensor | None) -> bool:
    """Whether a result has to carry gradients to one of the tensors."""
    return torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in tensors if tensor is not None
    )


def plain(*tensors: Tensor | None) -> bool:
    """Whether only the plain form of a kernel works: torch's own operations, out of place."""
    return wants_gradients(*tensors) or exporting() or transformed()


def _devices(tensors: list[Tensor]) -> str:
    return " and ".join(dict.fromkeys(tensor.device.type for tensor in tensors))
