"""The watch sees what it is there for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.watching import Watch

X = torch.arange(6.0)
WAITERS: dict[str, Callable[[], Any]] = {
    "item": lambda: X.sum().item(),
    "bool": lambda: bool(X.any()),
    "float": lambda: float(X[0]),
    "int": lambda: int(X[0]),
    "a slice by a tensor": lambda: X[: X[2].long()],
    "tolist": lambda: X.tolist(),
    "numpy": lambda: X.numpy(),
    "nonzero": lambda: X.nonzero(),
    "where": lambda: torch.where(X > 2),
    "masked_select": lambda: X.masked_select(X > 2),
    "a boolean index": lambda: X[X > 2],
    "a boolean assignment": lambda: X.clone().__setitem__(X > 2, X[:3]),
    "equal": lambda: torch.equal(X, X),
    "allclose": lambda: torch.allclose(X, X),
    "unique": lambda: X.unique(),
    "counts": lambda: X.repeat_interleave(X.long()),
}
FREE: dict[str, Callable[[], Any]] = {
    "gather": lambda: X.gather(0, X.long()),
    "an index": lambda: X[X.long()],
    "where with both": lambda: torch.where(X > 2, X, 0),
    "masked_fill": lambda: X.masked_fill(X > 2, 0),
    "sort": lambda: X.sort(),
    "len": lambda: len(X),
}


@pytest.mark.parametrize("call", WAITERS.values(), ids=WAITERS)
def test_what_waits_is_seen(call: Callable[[], Any]) -> None:
    with Watch() as watch:
        call()
    assert watch.waited
    assert all(" at test_watching:" in where.replace("tests.", "") for where in watch.waited)
    assert watch.ours == []
    with pytest.raises(AssertionError, match="the host waits"), Watch(strict=True):
        call()


@pytest.mark.parametrize("call", FREE.values(), ids=FREE)
def test_what_does_not_wait_is_not(call: Callable[[], Any]) -> None:
    with Watch(strict=True):
        call()


def test_launches_and_sizes() -> None:
    with Watch() as watch:
        y = X.view(2, 3).mT[None] + 1  # one launch; the rest are views
        y @ y.mT
    assert sum(watch.launched.values()) == 2
    assert watch.largest == 9
