"""Speed as a ratio: candidates in turn, round by round, each against the baseline of its own round.

A machine's speed drifts (clock, heat, neighbours), so two times taken minutes apart say little about two
programs. Here every round calls each function once, in another order than the round before, and divides
its time by that of the baseline in the same round. What is returned are ratios; seconds never leave.

    timings = interleaved({"bare": f, "evoprune": g}, rounds=9, baseline="bare")
    timings["evoprune"].ratio          # the median: 0.6 is a function that takes 0.6 of the time

Put the baseline in twice, under another name, to see what the noise alone does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter

import torch

from tokenzoo._core.quoting import quote
from tokenzoo._core.validation import check_count, check_kind
from tokenzoo.errors import BadArgumentError


@dataclass(frozen=True)
class Timing:
    """How long a function takes, as a ratio to the baseline.

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
    """Time functions in turn, and relate each call to the baseline's in the same round.

    Args:
        functions: by name; each is called `warmup + rounds` times.
        rounds: that count.
        warmup: rounds before them, which do not.
        baseline: the name whose ratio is 1 by definition.
        between: called after every call, off the clock: for a progress bar.

    Returns:
        One timing per name, in the order of `functions`.

    Raises:
        BadArgumentError: no round, a negative warm-up, a baseline that is not among the names, or
            what is no function.
    """
    check_count("rounds", rounds)
    check_count("warmup", warmup, least=0)
    check_kind("functions", functions, Mapping)
    for name, function in (*functions.items(), ("between", between or _wait)):
        if not callable(function):
            raise BadArgumentError(f"{name}={quote(function)}; it is a function without arguments")
    if not isinstance(baseline, str | int) or baseline not in functions:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise BadArgumentError(
            f"baseline={quote(baseline)}; it is one of the functions: "
            f"{', '.join(map(str, functions)) or 'none given'}"
        )
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(warmup + rounds):
        for name in turn(names, index):
            seconds[name].append(_time(functions[name]))
            if between is not None:
                between()
    base = seconds[baseline]
    return {
        name: Timing(tuple(a / b for a, b in zip(own[warmup:], base[warmup:], strict=True)))
        for name, own in seconds.items()
    }


def turn(names: Sequence[str], index: int) -> list[str]:
    """The order of round `index`: backwards in every other one, and then rotated by one.

    What drifts evenly within a round cancels over two of them; rotating lets each function come first
    and last.
    """
    start = index // 2 % len(names)
    order = [*names[start:], *names[:start]]
    return order[::-1] if index % 2 else order


def _time(function: Callable[[], object]) -> float:
    """Seconds of one call, all its work on the GPU included."""
    _wait()
    start = perf_counter()
    function()
    _wait()
    return perf_counter() - start


def _wait() -> None:
    """Wait for the current CUDA device, if CUDA is in use: its kernels run behind Python's back."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
