"""Two lists of cases without their whole product."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def paired(one: str, firsts: Iterable[Any], other: str, seconds: Iterable[Any]) -> Any:
    """Each of the longer list once, with the others in turn: all of both, and not all pairs.

    For claims whose two sides are independent, such as a form of a call and a recipe: that each kind of
    model works with each recipe is held by the tests of identity, counts and rows alone.
    """
    rows, columns = list(firsts), list(seconds)
    size = max(len(rows), len(columns))
    pairs = [(rows[i % len(rows)], columns[i % len(columns)]) for i in range(size)]
    return pytest.mark.parametrize((one, other), pairs)
