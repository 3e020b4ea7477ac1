"""Intervals and paired tests, against values worked out elsewhere."""

from __future__ import annotations

import math

import pytest

from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation.statistics import difference, estimate, holm

HALF = 4.30265273 / math.sqrt(3)


@pytest.mark.parametrize(
    ("scores", "value", "low", "high"),
    [
        ([1] * 8 + [0] * 2, 0.8, 0.4901625, 0.9433178),  # Wilson's interval of hits
        ([1.0, 2.0, 3.0], 2, 2 - HALF, 2 + HALF),  # Student's of others
        ([1.0, 1.0], 1, 1, 1),  # floats are no hits
    ],
)
def test_intervals(scores: list[float], value: float, low: float, high: float) -> None:
    found = estimate(scores)
    assert (found.value, found.low, found.high) == pytest.approx((value, low, high), abs=1e-6)


def test_a_difference_is_paired() -> None:
    ours, other = [0.1, 0.5, 0.9], [0.0, 0.4, 0.8]
    found = difference(ours, other)
    assert found.value == pytest.approx(0.1)
    assert found.high - found.low < 1e-6
    assert found.p == pytest.approx(2 / 2**3)  # all are the same: the sign test
    assert difference(ours, ours).p == 1.0
    assert difference([0.1, 0.5, 0.9001], other).p < 1e-6


def test_hits_are_compared_by_mcnemars_exact_test() -> None:
    """Six samples that only ours gets right, none that only the other does: 2 / 2^6."""
    found = difference([1] * 10, [0] * 6 + [1] * 4)
    assert (found.value, found.p) == (0.6, pytest.approx(2 / 64))
    assert difference([1, 0], [1, 0]).p == 1.0


def test_too_few_scores_or_other_samples() -> None:
    with pytest.raises(BadArgumentError, match="1 scores"):
        estimate([1.0])
    with pytest.raises(BadArgumentError, match="2 scores and 3"):
        difference([1, 1], [1, 1, 1])


def test_holms_correction() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
