"""Interleaved timing: functions run in turn, each relative to the baseline of the same round.

A machine's speed drifts (clock, heat, neighbours), so times taken minutes apart cannot be compared. Every
round calls each function once, in another order than the round before, and divides its time by that of the
baseline in the same round. Only ratios are returned, no seconds. The benchmark of whole models
(`tokenzoo.tools.benchmark`) uses the same order and the same ratios for the parts of a call.

    timings = interleaved({"bare": f, "evoprune": g}, rounds=9, baseline="bare")
    timings["evoprune"].ratio          # the median: 0.6 is a function that takes 0.6 of the time

Add the baseline a second time, under another name, to see the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import TypeVar

import torch

from tokenzoo._core.quoting import quote
from tokenzoo._core.validation import check_count, check_kind, is_kind
from tokenzoo.errors import BadArgumentError

T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    """The time of a function relative to the baseline.

    Attributes:
        ratios: one per round.
        ratio: their median.
        low: their lower quartile.
        high: their upper quartile.
    """

    ratios: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """The median over the rounds."""
        return median(self.ratios)

    @property
    def low(self) -> float:
        """The lower quartile: a quarter of the rounds was below."""
        return self._quartiles()[0]

    @property
    def high(self) -> float:
        """The upper quartile: a quarter of the rounds was above."""
        return self._quartiles()[2]

    def _quartiles(self) -> list[float]:
        if len(self.ratios) == 1:
            return [self.ratios[0]] * 3
        return quantiles(self.ratios, n=4, method="inclusive")

    def __str__(self) -> str:
        return f"{self.ratio:.2f} ({self.low:.2f}-{self.high:.2f})"


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    baseline: str,
    between: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Time functions in turn, relative to the baseline.

    Args:
        functions: by name; each is called `warmup + rounds` times.
        rounds: number of rounds that count.
        warmup: number of rounds before them, which do not count.
        baseline: the name whose ratio is 1 by definition.
        between: called after every call, off the clock: for a progress bar.

    Returns:
        One timing per name, in the order of `functions`.

    Raises:
        BadArgumentError: no round, a negative warm-up, a baseline that is not among the names, or a
            value that cannot be called.
    """
    check_count("rounds", rounds)
    check_count("warmup", warmup, least=0)
    check_kind("functions", functions, Mapping)
    for name, function in (*functions.items(), ("between", between or _wait)):
        if not callable(function):
            raise BadArgumentError(
                f"{name}={quote(function)}; it must be a function without arguments"
            )
    if not is_kind(baseline, str | int) or baseline not in functions:
        raise BadArgumentError(
            f"baseline={quote(baseline)}; it must be one of the functions: "
            f"{', '.join(map(str, functions)) or 'none given'}"
        )
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in in_turn(names, warmup + rounds):
        seconds[name].append(_time(functions[name]))
        if between is not None:
            between()
    base = seconds[baseline][warmup:]
    return {name: relative(own[warmup:], base) for name, own in seconds.items()}


def in_turn(names: Sequence[T], rounds: int) -> Iterator[T]:
    """Yield each name once per round, in the order of `turn`."""
    for index in range(rounds):
        yield from turn(names, index)


def relative(seconds: Sequence[float], base: Sequence[float]) -> Timing:
    """Divide each round's seconds by those of the baseline in the same round."""
    return Timing(tuple(a / b for a, b in zip(seconds, base, strict=True)))


def turn(names: Sequence[T], index: int) -> list[T]:
    """Return the order of round `index`: reversed in every other round, rotated by one every two rounds.

    A linear drift within a round cancels over two rounds; by the rotation each function comes first and
    last.
    """
    start = index // 2 % len(names)
    order = [*names[start:], *names[:start]]
    return order[::-1] if index % 2 else order


def _time(function: Callable[[], object]) -> float:
    """Return the seconds of one call, including its work on the GPU."""
    _wait()
    start = perf_counter()
    function()
    _wait()
    return perf_counter() - start


def _wait() -> None:
    """Wait for the kernels of the current CUDA device, if CUDA is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
