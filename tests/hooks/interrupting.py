"""Ctrl-C at a chosen instruction: a trace function that raises there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from types import FrameType, ModuleType
from typing import Any


def run(
    call: Callable[[], Any],
    modules: Iterable[ModuleType],
    at: int | None = None,
    event: str = "opcode",
) -> int:
    """Call a function, and interrupt it at one of the instructions of some modules.

    Args:
        call: the function.
        modules: in whose code instructions are counted.
        at: which of them raises a KeyboardInterrupt; None: none does.
        event: "opcode" or "line".

    Returns:
        How many there were before the interrupt, or in all.
    """
    files = {module.__file__ for module in modules}
    count = 0

    def inside(frame: FrameType, kind: str, arg: Any) -> Any:
        nonlocal count
        if kind == event:
            if count == at:
                raise KeyboardInterrupt
            count += 1
        return inside

    def outside(frame: FrameType, kind: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = event == "opcode"
        return inside

    before = sys.gettrace()
    sys.settrace(outside)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return count
