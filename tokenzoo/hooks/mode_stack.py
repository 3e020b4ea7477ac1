"""torch's stack of function modes, and Python's stack of frames, of the thread that asks."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# torch has no public way to take out a mode that is not on top of the stack.
from torch.overrides import (
    _get_current_function_mode_stack as _stack,  # pyright: ignore[reportPrivateUsage]
)

_C: Any = torch._C  # pyright: ignore[reportPrivateUsage]


def entered() -> list[TorchFunctionMode]:
    """Return the modes, the one on top last."""
    return _stack()


def no_mode() -> bool:
    """Whether the stack of modes is empty."""
    return not _C._len_torch_function_stack()


def take_out(own: TorchFunctionMode) -> None:
    """Take a mode off the stack; the others stay, in their order."""
    while True:
        modes = _stack()
        at = next((i for i, mode in enumerate(modes) if mode is own), None)
        if at is None:
            return
        above = modes[at + 1 :]
        steps: list[Callable[[], object]] = [_C._pop_torch_function_stack] * (len(above) + 1)
        steps += [partial(_C._push_on_torch_function_stack, mode) for mode in above]
        # One call of C: an interrupt comes before it or after it, and never takes the others' modes away.
        list(map(operator.call, steps))


def runs(frame_id: str) -> bool:
    """Whether the frame with this `id`, which somebody holds, is on the stack of this thread."""
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None and str(id(frame)) != frame_id:
        frame = frame.f_back
    return frame is not None


# As torch.compiler.assume_constant_result does, which would import the compiler.
runs._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
