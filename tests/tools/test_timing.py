"""Timings are taken in turn, related within a round, and never leave as seconds."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tokenzoo.errors import BadArgumentError
from tokenzoo.tools import timing
from tokenzoo.tools.timing import Timing, interleaved, turn


class Clock:
    """A clock that only the functions under test move forward."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def takes(self, name, *seconds):
        """A function that takes these seconds, call by call, over and over."""
        each = itertools.cycle(seconds)

        def function() -> None:
            self.calls.append(name)
            self.now += next(each)

        return function


@pytest.fixture
def clock(monkeypatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(timing, "perf_counter", fake)
    return fake


def test_every_round_calls_each_function_once_and_changes_the_order(clock) -> None:
    functions = {name: clock.takes(name, 1.0) for name in "abc"}
    interleaved(functions, rounds=3, warmup=1, baseline="a")
    assert "".join(clock.calls) == "abc" + "cba" + "bca" + "acb"


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_over_the_rounds_each_function_is_first_and_last(count) -> None:
    names = [str(i) for i in range(count)]
    orders = [turn(names, index) for index in range(2 * count)]
    assert all(sorted(order) == names for order in orders)
    assert {order[0] for order in orders} == {order[-1] for order in orders} == set(names)


@pytest.mark.parametrize(
    ("bare", "other", "warmup", "ratio"),
    [
        ((1.0, 4.0), (0.5, 2.0), 0, 0.5),  # the machine slows down, and both feel it
        ((1.0,), (100.0, 2.0, 2.0), 1, 2.0),  # a slow start does not count
    ],
)
def test_a_call_is_related_to_the_baseline_of_its_own_round(
    clock, bare, other, warmup, ratio
) -> None:
    """What happens between the calls is off the clock."""

    def dawdle() -> None:
        clock.now += 1000.0

    functions = {"bare": clock.takes("bare", *bare), "other": clock.takes("other", *other)}
    found = interleaved(functions, rounds=2, warmup=warmup, baseline="bare", between=dawdle)
    assert {name: one.ratios for name, one in found.items()} == {
        "bare": (1.0, 1.0),
        "other": (ratio, ratio),
    }


def test_median_and_quartiles() -> None:
    timing = Timing((0.9, 0.5, 0.6, 0.7, 9.0))  # one disturbed round moves nothing
    assert (timing.low, timing.ratio, timing.high) == (0.6, 0.7, 0.9)
    assert str(timing) == "0.70 (0.60-0.90)"
    single = Timing((0.5,))
    assert (single.low, single.ratio, single.high) == (0.5, 0.5, 0.5)


def test_a_real_clock_orders_a_long_and_a_short_function() -> None:
    x = torch.rand(200, 200)

    def work(times):
        return [x @ x for _ in range(times)]

    functions = {"long": lambda: work(60), "short": lambda: work(1)}
    assert interleaved(functions, rounds=5, baseline="long")["short"].ratio < 0.5


def test_cuda_is_waited_for_before_and_after_where_it_is_in_use(clock, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: clock.calls.append("wait"))
    interleaved({"a": clock.takes("a", 1.0)}, rounds=1, warmup=0, baseline="a")
    assert clock.calls == ["wait", "a", "wait"]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"rounds": 0}, "rounds=0"),
    ({"rounds": True}, "rounds=True"),
    ({"warmup": -1}, "warmup=-1"),
    ({"baseline": "c"}, "baseline='c'.*a, b"),
    ({"functions": {}}, "none given"),
]


@pytest.mark.parametrize(("change", "named"), BAD)
def test_bad_arguments_are_named(change, named) -> None:
    with pytest.raises(BadArgumentError, match=named):
        interleaved(**{"functions": {"a": int, "b": int}, "rounds": 1, "baseline": "a", **change})
