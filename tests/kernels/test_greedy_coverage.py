"""Both forms of greedy coverage choose what the definition chooses, one gain at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.compiling import clean_compiler as clean_compiler
from tests.kernels.drawing import draws
from tests.watching import Watch
from tokenzoo._core.precision import summable
from tokenzoo.kernels.greedy_coverage import _by_changes, _plain, greedy_coverage


def by_hand(cover: Tensor, weight: Tensor, last: Tensor, k: int) -> list[list[int]]:
    """Each gain of each candidate, from the sets themselves."""
    found: list[list[int]] = []
    for table, w, late in zip(cover.tolist(), weight.tolist(), last.tolist(), strict=True):
        chosen: list[int] = []
        while len(chosen) < k:
            scores: dict[int, float] = {}
            for j in range(len(w)):
                if j not in chosen:
                    best = [max((row[c] for c in chosen), default=0) for row in table]
                    gain = sum(max(0.0, row[j] - old) for row, old in zip(table, best, strict=True))
                    scores[j] = -1.0 if late[j] else gain * w[j]
            chosen.append(max(scores, key=lambda j: (scores[j], -j)))
        found.append(chosen)
    return found


def given_of(seed: int, b: int, r: int, p: int, steps: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Coverages of few or many different values, weights, and who comes last."""
    cover = draws(seed, b, r, p).double().abs().clamp_max(1) / r
    if steps:
        cover = (cover * r * steps).floor() / steps / r
    weight = (draws(seed + 1, b, p).double().abs() * 4).floor() / 4
    return summable(cover), weight, draws(seed + 2, b, p) > 1.3


@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 9),
    st.sampled_from([0, 1, 3]),
    st.integers(0, 999),
)
@settings(max_examples=80)
def test_both_forms_are_the_definition(
    b: int, r: int, p: int, k: int, steps: int, seed: int
) -> None:
    cover, weight, last = given_of(seed, b, r, p, steps)
    k = min(k, p)
    expected = by_hand(cover, weight, last, k)
    for form in (_plain, _by_changes, greedy_coverage):
        assert form(cover, weight, last, k).tolist() == expected, form


def test_both_forms_add_up_the_same_bits() -> None:
    """Where gains are sums of hundreds of terms, in two orders."""
    cover, weight, last = given_of(5, 2, 300, 300)
    found = _by_changes(cover, torch.ones_like(weight), last, 200)
    assert torch.equal(found, _plain(cover, torch.ones_like(weight), last, 200))
    assert not torch.equal(found, _plain(cover, weight, last, 200))


def test_an_image_is_not_changed_by_others() -> None:
    cover, weight, last = given_of(7, 5, 40, 40)
    alone = [greedy_coverage(*(t[i : i + 1] for t in (cover, weight, last)), 30) for i in range(5)]
    assert torch.equal(torch.cat(alone), greedy_coverage(cover, weight, last, 30))


def test_values_are_looked_up_inside_one_operation_of_the_cpu() -> None:
    given = given_of(3, 1, 12, 12)
    with Watch(strict=True) as watch:
        greedy_coverage(*given, 5)
    assert watch.launched == {}
    with pytest.raises(AssertionError, match="nonzero"), Watch(strict=True):
        _by_changes(*given, 5)
    with Watch(strict=True):  # elsewhere
        _plain(*given, 5)


def test_it_compiles_as_one_operation(clean_compiler: None) -> None:
    cover, weight, last = given_of(9, 2, 15, 15)
    compiled = torch.compile(greedy_coverage, backend="eager", fullgraph=True)
    assert compiled(cover, weight, last, 6).tolist() == by_hand(cover, weight, last, 6)
    program = torch.export.export(Chooses(), (cover.float(), weight.float(), last))
    assert "greedy_coverage" not in str(program.graph)
    assert program.module()(cover, weight, last).shape == (2, 6)


class Chooses(torch.nn.Module):
    def forward(self, cover: Tensor, weight: Tensor, last: Tensor) -> Tensor:
        return greedy_coverage(cover, weight, last, 6)
