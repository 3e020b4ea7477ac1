"""Timings are taken in turn, related within a round, and never leave as seconds."""

from __future__ import annotations

import itertools

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
    rounds = ["".join(clock.calls[i : i + 3]) for i in range(0, len(clock.calls), 3)]
    assert rounds == ["abc", "cba", "bca", "acb"]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_over_the_rounds_each_function_is_first_and_last(count) -> None:
    names = [str(i) for i in range(count)]
    orders = [turn(names, index) for index in range(2 * count)]
    assert all(sorted(order) == names for order in orders)
    assert {order[0] for order in orders} == {order[-1] for order in orders} == set(names)


def test_a_call_is_related_to_the_baseline_of_its_own_round(clock) -> None:
    # The machine slows down fourfold in the second round, and both feel it.
    functions = {"bare": clock.takes("bare", 1.0, 4.0), "half": clock.takes("half", 0.5, 2.0)}
    found = interleaved(functions, rounds=4, warmup=0, baseline="bare")
    assert list(found) == ["bare", "half"]
    assert found["half"].ratios == (0.5,) * 4
    assert found["bare"].ratios == (1.0,) * 4


def test_the_warm_up_does_not_count(clock) -> None:
    functions = {"bare": clock.takes("bare", 1.0), "slow start": clock.takes("s", 100.0, 2.0, 2.0)}
    found = interleaved(functions, rounds=2, warmup=1, baseline="bare")
    assert found["slow start"].ratios == (2.0, 2.0)


def test_what_happens_between_calls_is_off_the_clock(clock) -> None:
    def dawdle() -> None:
        clock.now += 1000.0

    functions = {"bare": clock.takes("bare", 1.0), "same": clock.takes("same", 1.0)}
    found = interleaved(functions, rounds=3, baseline="bare", between=dawdle)
    assert found["same"].ratios == (1.0,) * 3


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


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"rounds": 0, "baseline": "a"}, "rounds=0"),
        ({"rounds": True, "baseline": "a"}, "rounds=True"),
        ({"rounds": 1, "warmup": -1, "baseline": "a"}, "warmup=-1"),
        ({"rounds": 1, "baseline": "c"}, "baseline='c'; it must be one of the functions: a, b"),
    ],
)
def test_bad_arguments_are_named(options, complaint) -> None:
    with pytest.raises(BadArgumentError, match=complaint):
        interleaved({"a": int, "b": int}, **options)


def test_no_function_at_all() -> None:
    with pytest.raises(BadArgumentError, match="none given"):
        interleaved({}, rounds=1, baseline="a")
