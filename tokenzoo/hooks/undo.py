"""One way of undoing: steps, taken back from the last to the first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Undo = Callable[[], Any]


def undo_all(steps: list[Undo]) -> None:
    """Run the steps that undo something, from the last to the first, and empty the list.

    A step is removed from the list after it has run. So after an interrupt (Ctrl-C) the next call begins
    with the step that was interrupted: each step must be one that can be repeated.
    """
    while steps:
        steps[-1]()
        steps.pop()
