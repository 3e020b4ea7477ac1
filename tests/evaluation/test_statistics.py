"""Intervals and paired tests, against values worked out elsewhere."""

from __future__ import annotations

import math

import pytest

from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation.statistics import difference, estimate, holm


def test_hits_have_wilsons_interval() -> None:
    found = estimate([1] * 8 + [0] * 2)
    assert found.value == 0.8
    assert (found.low, found.high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert estimate([1] * 10).low < 1  # all right of ten is no proof of perfection


def test_other_scores_have_students_interval() -> None:
    found = estimate([1.0, 2.0, 3.0])
    half = 4.30265273 / math.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half), abs=1e-6)


def test_floats_that_are_0_and_1_are_no_hits() -> None:
    assert estimate([1.0, 1.0]).low == 1.0


def test_a_difference_is_paired() -> None:
    ours, other = [0.1, 0.5, 0.9], [0.0, 0.4, 0.8]
    found = difference(ours, other)
    assert found.value == pytest.approx(0.1)
    assert found.high - found.low < 1e-6
    assert found.p < 1e-6
    assert difference(ours, ours).p == 1.0


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
