"""What the hooks of one block tell each other while it runs."""

from __future__ import annotations

from torch import Tensor

from tokenzoo.evidence import Evidence
from tokenzoo.hooks.state import PerThread, ReductionState, thread_local
from tokenzoo.hooks.tap import Tap
from tokenzoo.layouts.base import Windows


class HookState(PerThread):
    """What the hooks of one block tell each other while it runs; each run of the block overwrites it."""

    state: ReductionState | None = thread_local("state")
    tap: Tap | None = thread_local("tap")
    windows: Windows | None = thread_local("windows")
    reduced: Tensor | None = thread_local("reduced")
    entered: Tensor | None = thread_local("entered")
    branch: Tensor | None = thread_local("branch")
    whole: Tensor | None = thread_local("whole")
    length: int = thread_local("length")
    evidence: list[Evidence] | None = thread_local("evidence")
    called: bool | None = thread_local("called")
    learns: bool | None = thread_local("learns")

    def clear(self) -> None:
        """Forget the last run."""
        self.state = self.tap = self.windows = self.reduced = self.branch = self.whole = None
        self.evidence = self.called = self.entered = None
