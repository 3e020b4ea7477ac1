"""ToMe's r: a number of removals per block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tokenzoo._core.kinds import Index, Range

from .fixed import Fixed


@dataclass(frozen=True)
class PerBlock(Fixed):
    """Remove r tokens per block, on average, with r changing linearly over the blocks.

    ToMe's schedules (arXiv 2210.09461): every number equals that of its published code.

    Args:
        r: removals per block.
        inflection: from -1 (2r falling to 0) over 0 (r everywhere) to 1 (0 rising to 2r).
    """

    r: Index
    inflection: Annotated[float, Range(-1, 1)] = 0.0

    def removals_at(self, sites: int) -> tuple[int, ...]:
        """Return a ramp from r * (1 - inflection) to r * (1 + inflection), truncated at each block."""
        # The order of these products in floating point decides each truncation.
        first = int(self.r * (1.0 - self.inflection))
        last = 2 * self.r - first
        step = (last - first) / (sites - 1) if sites > 1 else 0.0
        return tuple(int(first + step * site) for site in range(sites))
