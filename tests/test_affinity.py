"""Every faster way to a pair score gives the numbers of `dense()`, which is the definition."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenzoo import Affinity
from tokenzoo.affinity import LINEAR, Curve, Elementwise, Exp, Linear
from tokenzoo.token_map import take

CURVES: list[Curve] = [
    LINEAR,
    Linear(0.5, 0.5),
    Linear(2.0, -0.3),
    Exp(),
    Exp(3.0),
    Elementwise(torch.sigmoid),
]
NAMES = ["cosine", "nonnegative", "linear", "exp", "exp3", "sigmoid"]
LINEARS = [curve for curve in CURVES if isinstance(curve, Linear)]
EXPONENTIALS = [curve for curve in CURVES if isinstance(curve, Exp)]

close = {"rtol": 1e-12, "atol": 1e-12}


@st.composite
def affinities(draw: st.DrawFn, curves: list[Curve] = CURVES) -> Affinity:
    """Scores of a x p pairs in float64, with or without weights; some have many equal rows."""
    b, a, p, d = (draw(st.integers(1, top)) for top in (3, 12, 12, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))

    def rows(n: int) -> torch.Tensor:
        values = torch.randn(b, n, d, generator=generator, dtype=torch.float64)
        return torch.nn.functional.normalize(values, dim=-1)

    def weights(n: int) -> torch.Tensor | None:
        values = torch.rand(b, n, generator=generator, dtype=torch.float64) + 0.1
        return values if draw(st.booleans()) else None

    return Affinity(rows(a), rows(p), weights(a), weights(p), draw(st.sampled_from(curves)))


def by_definition(affinity: Affinity) -> torch.Tensor:
    """source[i] * curve(<left[i], right[j]>) * target[j], pair by pair."""
    b, a, p = *affinity.left.shape[:2], affinity.right.shape[1]
    scores = torch.empty(b, a, p, dtype=affinity.left.dtype)
    for i, j in product(range(a), range(p)):
        scores[:, i, j] = affinity.curve((affinity.left[:, i] * affinity.right[:, j]).sum(-1))
        if affinity.source is not None:
            scores[:, i, j] *= affinity.source[:, i]
        if affinity.target is not None:
            scores[:, i, j] *= affinity.target[:, j]
    return scores


@given(affinities())
@settings(max_examples=25)
def test_dense_is_the_definition(affinity: Affinity) -> None:
    torch.testing.assert_close(affinity.dense(), by_definition(affinity), **close)


@given(affinities())
@settings(max_examples=60)
def test_best_is_the_maximum_of_dense(affinity: Affinity) -> None:
    value, index = affinity.best()
    dense = affinity.dense()
    torch.testing.assert_close(value, dense.max(-1).values, **close)
    torch.testing.assert_close(dense.gather(-1, index[..., None])[..., 0], value, **close)


@given(affinities())
@settings(max_examples=40)
def test_folded_weights_rank_targets_as_dense_does(affinity: Affinity) -> None:
    folded = affinity.folded()
    if folded is None:
        assert affinity.target is not None
        assert isinstance(affinity.curve, Elementwise)
        return
    scale, shift = folded
    inner, dense = affinity.left @ affinity.right.mT, affinity.dense()
    inner = inner if scale is None else inner * scale[:, None]
    inner = inner if shift is None else inner + shift[:, None]
    order = inner.argsort(-1)
    ranked = dense.gather(-1, order)
    assert bool((ranked.diff(dim=-1) >= -1e-12).all())


@given(affinities(), st.data())
@settings(max_examples=25)
def test_at_is_a_part_of_dense(affinity: Affinity, data: st.DataObject) -> None:
    b, a, p = affinity.dense().shape
    seed = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    rows = torch.randint(a, (b, data.draw(st.integers(1, a))), generator=seed)
    columns = torch.randint(p, (b, data.draw(st.integers(1, p))), generator=seed)
    part = affinity.at(rows, columns)
    expected = torch.stack([affinity.dense()[i][rows[i]][:, columns[i]] for i in range(b)])
    torch.testing.assert_close(part.dense(), expected, **close)


@given(affinities(), st.data())
@settings(max_examples=40)
def test_nearest_are_the_highest_of_dense(affinity: Affinity, data: st.DataObject) -> None:
    dense = affinity.dense()
    k = data.draw(st.integers(1, dense.shape[-1]))
    value, index = affinity.nearest(k)
    order = dense.argsort(dim=-1, descending=True, stable=True)[..., :k]
    torch.testing.assert_close(value, dense.gather(-1, order), **close)
    assert torch.equal(index, order)


@given(affinities())
@settings(max_examples=40)
def test_mean_and_row_are_those_of_dense(affinity: Affinity) -> None:
    dense = affinity.dense()
    b, a, _ = dense.shape
    torch.testing.assert_close(affinity.mean(), dense.mean(-1), **close)
    for i in range(a):
        index = (torch.arange(b) + i) % a
        expected = dense[torch.arange(b), index]
        torch.testing.assert_close(affinity.row(index), expected, **close)


@given(affinities())
@settings(max_examples=25)
def test_diagonal_is_that_of_dense(affinity: Affinity) -> None:
    n = min(affinity.left.shape[1], affinity.right.shape[1])
    first = torch.arange(n).expand(affinity.left.shape[0], n)
    square = affinity.at(first, first)
    torch.testing.assert_close(
        square.diagonal(), square.dense().diagonal(dim1=-2, dim2=-1), **close
    )


@given(affinities(), st.sampled_from(["source", "target", "both"]))
@settings(max_examples=40)
def test_weights_multiply_dense(affinity: Affinity, on: str) -> None:
    n = min(affinity.left.shape[1], affinity.right.shape[1])
    first = torch.arange(n).expand(affinity.left.shape[0], n)
    square = affinity.at(first, first)
    weight = torch.rand(*first.shape, generator=torch.Generator().manual_seed(0)).double() + 0.1
    expected = square.dense()
    if on != "target":
        expected = expected * weight[:, :, None]
    if on != "source":
        expected = expected * weight[:, None, :]
    weighted = square.weighted(weight, on)
    torch.testing.assert_close(weighted.dense(), expected, **close)
    torch.testing.assert_close(weighted.best()[0], expected.max(-1).values, **close)


def pair_of(curves: list[Curve]) -> st.SearchStrategy[tuple[Affinity, Affinity]]:
    """Two scores of the same pairs."""

    def partner(one: Affinity) -> st.SearchStrategy[tuple[Affinity, Affinity]]:
        def other(curve: Curve, seed: int, weights: bool) -> tuple[Affinity, Affinity]:
            generator = torch.Generator().manual_seed(seed)
            shape = one.left.shape[:2], one.right.shape[:2]
            left, right = (
                torch.randn(*size, 3, generator=generator, dtype=torch.float64) for size in shape
            )
            source, target = (
                torch.rand(size, generator=generator, dtype=torch.float64) + 0.1 for size in shape
            )
            return one, Affinity(
                left, right, source if weights else None, target if weights else None, curve
            )

        return st.builds(other, st.sampled_from(curves), st.integers(0, 99), st.booleans())

    return affinities(curves).flatmap(partner)


@given(pair_of(LINEARS))
@settings(max_examples=40)
def test_linear_scores_add_up(pair: tuple[Affinity, Affinity]) -> None:
    one, other = pair
    total = one + other
    expected = one.dense() + other.dense()
    torch.testing.assert_close(total.dense(), expected, **close)
    torch.testing.assert_close(total.best()[0], expected.max(-1).values, **close)
    torch.testing.assert_close(total.mean(), expected.mean(-1), **close)


@given(pair_of(EXPONENTIALS))
@settings(max_examples=40)
def test_exponential_scores_multiply(pair: tuple[Affinity, Affinity]) -> None:
    one, other = pair
    expected = one.dense() * other.dense()
    torch.testing.assert_close((one * other).dense(), expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(
        (one * other).best()[0], expected.max(-1).values, rtol=1e-11, atol=1e-12
    )


@pytest.mark.parametrize("curve", CURVES, ids=NAMES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("targets", [4, 33, 200])
@pytest.mark.parametrize("way", ["best", "nearest"])
def test_ties_go_to_the_lower_index(curve: Curve, weighted: bool, targets: int, way: str) -> None:
    """Integers, whose products are exact: columns 1, 3, 5, ... are all the same, and the best."""
    left = torch.ones(2, 3, 4)
    right = torch.ones(2, targets, 4)
    right[:, ::2] = -1
    weight = torch.full((2, targets), 0.5) if weighted else None
    affinity = Affinity(left, right, target=weight, curve=curve)
    if way == "best":
        assert torch.equal(affinity.best()[1], torch.ones(2, 3, dtype=torch.long))
        return
    nearest = affinity.nearest(targets)[1]
    expected = torch.cat([torch.arange(1, targets, 2), torch.arange(0, targets, 2)])
    assert torch.equal(nearest, expected.expand(2, 3, targets))


@pytest.mark.parametrize("curve", CURVES, ids=NAMES)
@pytest.mark.parametrize("weights", ["none", "source", "target", "both"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_nan_attracts_nobody_and_merges_last(curve: Curve, weights: str, value: float) -> None:
    features = torch.nn.functional.normalize(
        torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        dim=-1,
    )
    features[:, [0, 4]] = value
    affinity = Affinity(features / features.norm(dim=-1, keepdim=True), features, curve=curve)
    if weights != "none":
        weight = torch.linspace(0.5, 2.0, 9, dtype=torch.float64).expand(2, 9)
        affinity = affinity.weighted(weight, weights)
    targets = torch.tensor([[0, 1, 4, 5, 6]] * 2)
    best, index = affinity.at(torch.arange(9).expand(2, 9), targets).best()
    assert not best.isnan().any()
    good = [1, 2, 3, 5, 6, 7, 8]
    if value != value:  # an infinity in the targets is not a NaN, and may be the best there is
        assert not torch.isin(index[:, good], torch.tensor([0, 2])).any()
    assert bool((best[:, [0, 4]].max(-1).values < best[:, good].min(-1).values).all())
    nearest, partners = affinity.nearest(9)
    assert not nearest.isnan().any()
    if value != value:
        assert sorted(set(partners[0, 1, -2:].tolist())) == [0, 4]


def test_a_source_without_any_number_has_the_lowest_score_there_is() -> None:
    left = torch.full((1, 2, 3), torch.nan)
    best, index = Affinity(left, torch.ones(1, 4, 3)).best()
    assert torch.equal(best, torch.full((1, 2), torch.finfo(torch.float32).min))
    assert torch.equal(index, torch.zeros(1, 2, dtype=torch.long))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("curve", CURVES, ids=NAMES)
def test_sources_without_any_target_have_the_lowest_score_too(curve: Curve, weighted: bool) -> None:
    affinity = Affinity(torch.ones(2, 3, 4), torch.ones(2, 0, 4), curve=curve)
    if weighted:
        affinity = Affinity(affinity.left, affinity.right, None, torch.ones(2, 0), curve)
    best, index = affinity.best()
    assert best.shape == index.shape == (2, 3)
    assert bool((best <= 0).all())


@pytest.mark.parametrize("curve", CURVES, ids=NAMES)
def test_curves_increase(curve: Curve) -> None:
    inner = torch.linspace(-2, 2, 50, dtype=torch.float64)
    assert bool((curve(inner).diff() > 0).all())


def test_one_matrix_product_is_enough_where_there_is_a_folded_form() -> None:
    features, weight = torch.randn(1, 6, 4), torch.rand(1, 6) + 0.1
    needed = {LINEAR: (True, False), Linear(0.5, 0.5): (True, True), Exp(2.0): (False, True)}
    for curve, expected in needed.items():
        folded = Affinity(features, features, target=weight, curve=curve).folded()
        assert folded is not None
        assert tuple(factor is not None for factor in folded) == expected
    plain = Affinity(features, features, source=weight, curve=Elementwise(torch.sigmoid)).folded()
    assert plain == (None, None)


def test_gather_of_weights_is_that_of_features() -> None:
    affinity = Affinity(
        torch.randn(2, 5, 3), torch.randn(2, 5, 3), torch.rand(2, 5), torch.rand(2, 5)
    )
    rows, columns = torch.tensor([[3, 0], [1, 1]]), torch.tensor([[4], [2]])
    part = affinity.at(rows, columns)
    assert torch.equal(part.left, take(affinity.left, rows))
    assert torch.equal(part.target, take(affinity.target, columns))
