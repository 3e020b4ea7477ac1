"""The largest share of tokens whose measured time meets a limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tokenzoo.errors import BudgetError

T = TypeVar("T")

SLACK = 1.03  # a time so much above the limit still meets it: the noise of a quiet machine
TRIES = 4  # measurements
CLOSE = 0.95  # from this part of the limit on more tokens are not looked for
STEP = 0.02  # nor fewer more tokens than this share


def largest_share(
    measure: Callable[[float], tuple[float, T]], limit: float, start: float | None = None
) -> tuple[T | None, float]:
    """Search for the largest share of the tokens that meets a limit, by linear steps.

    Args:
        measure: from a share in (0, 1) the time, relative to that of all tokens, and what was measured; or
            a BudgetError: so few tokens are out of reach.
        limit: of the time, below 1.
        start: the share that is measured first; None: `limit`.

    Returns:
        What was measured at the largest share that meets the limit, None if none does; and the shortest
        time that was measured.

    Raises:
        BudgetError: every share that was tried is out of reach.
    """
    met: tuple[float, float, T] | None = None
    above, share, shortest = (1.0, 1.0), start or limit, float("inf")
    unreached, error = 0.0, BudgetError()
    for _ in range(TRIES):
        try:
            time, found = measure(share)
        except BudgetError as refused:
            unreached, error = share, refused
            share = round((unreached + above[0]) / 2, 3)
            continue
        shortest = min(shortest, time)
        if time <= limit * SLACK:
            met = (share, time, found)
            if time >= CLOSE * limit:
                break
        else:
            above = (share, time)
        following = _following(above, None if met is None else met[:2], limit)
        if met is not None and following - met[0] < STEP:
            break
        share = following if following > unreached else round((unreached + above[0]) / 2, 3)
    if shortest == float("inf"):
        raise error
    return (None if met is None else met[2]), shortest


def _following(above: tuple[float, float], met: tuple[float, float] | None, limit: float) -> float:
    """Return the share that a line through two measurements gives for the limit, to three digits."""
    share, time = above
    if met is not None:
        low, quick = met
        return round(low + (limit - quick) * (share - low) / (time - quick), 3)
    # Nothing is fast enough yet: the other point of the line is the bare model.
    steep = (1 - share) / (1 - time) if time < 1 else float("inf")
    return round(min(max(share - (time - limit) * steep, share / 4), 0.9 * share), 3)
