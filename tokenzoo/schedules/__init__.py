"""Schedules: how many tokens stay after each site. docs/budgets.md has the rule."""

from collections.abc import Callable, Mapping
from typing import Any

from tokenzoo.hookspecs import hookimpl

from .decreasing import Decreasing as Decreasing
from .explicit import Explicit as Explicit
from .first import First as First
from .geometric import Geometric as Geometric
from .increasing import Increasing as Increasing
from .last import Last as Last
from .mean import Mean as Mean
from .once import Once as Once
from .per_block import PerBlock as PerBlock
from .scaled import Scaled as Scaled
from .share import Share as Share
from .skip import Skip as Skip


@hookimpl
def tokenzoo_schedules() -> Mapping[str, Callable[..., Any]]:
    """The built-in schedules."""
    return {
        "mean": Mean,
        "skip": Skip,
        "first": First,
        "last": Last,
        "increasing": Increasing,
        "decreasing": Decreasing,
        "geometric": Geometric,
        "per_block": PerBlock,
        "explicit": Explicit,
        "once": Once,
        "scaled": Scaled,
        "share": Share,
    }
