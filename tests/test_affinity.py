"""Every faster way to a pair score gives the numbers of `dense()`, which is the definition."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenzoo import Affinity
from tokenzoo.affinity import LINEAR, Curve, Elementwise, Exp, Linear

CURVES: dict[str, Curve] = {
    "cosine": LINEAR,
    "nonnegative": Linear(0.5, 0.5),
    "linear": Linear(2.0, -0.3),
    "exp": Exp(),
    "exp3": Exp(3.0),
    "sigmoid": Elementwise(torch.sigmoid),
}
EVERY_CURVE = pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
close = {"rtol": 1e-12, "atol": 1e-12}


def drawn(*shape: int, seed: int, positive: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand if positive else torch.randn
    return draw(*shape, generator=generator, dtype=torch.float64) + 0.1 * positive


@st.composite
def affinities(
    draw: st.DrawFn, kinds: tuple[type, ...] = (Linear, Exp, Elementwise), count: int = 1
) -> Any:
    """Scores of a x p pairs in float64, with or without weights; or several scores of the same pairs."""
    b, a, p, d = (draw(st.integers(1, top)) for top in (3, 12, 12, 5))
    found: list[Affinity] = []
    for _ in range(count):
        seed = draw(st.integers(0, 2**16))
        sides = [
            torch.nn.functional.normalize(drawn(b, n, d, seed=seed + i), dim=-1)
            for i, n in enumerate((a, p))
        ]
        weights = [
            drawn(b, n, seed=seed + i, positive=True) if draw(st.booleans()) else None
            for i, n in enumerate((a, p))
        ]
        curve = draw(st.sampled_from([c for c in CURVES.values() if isinstance(c, kinds)]))
        found.append(Affinity(*sides, *weights, curve))
    return found[0] if count == 1 else found


def square(affinity: Affinity) -> Affinity:
    """The scores of as many sources as targets."""
    n = min(affinity.left.shape[1], affinity.right.shape[1])
    first = torch.arange(n).expand(affinity.left.shape[0], n)
    return affinity.at(first, first)


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


@given(affinities(), st.data())
@settings(max_examples=60)
def test_every_way_to_the_numbers_of_dense(affinity: Affinity, data: st.DataObject) -> None:
    dense = affinity.dense()
    torch.testing.assert_close(dense, by_definition(affinity), **close)
    b, a, p = dense.shape
    value, index = affinity.best()
    torch.testing.assert_close(value, dense.max(-1).values, **close)
    torch.testing.assert_close(dense.gather(-1, index[..., None])[..., 0], value, **close)
    k = data.draw(st.integers(1, p))
    value, index = affinity.nearest(k)
    assert torch.equal(index, dense.argsort(dim=-1, descending=True, stable=True)[..., :k])
    torch.testing.assert_close(value, dense.gather(-1, index), **close)
    torch.testing.assert_close(affinity.mean(), dense.mean(-1), **close)
    for i in range(a):
        row = (torch.arange(b) + i) % a
        torch.testing.assert_close(affinity.row(row), dense[torch.arange(b), row], **close)
    seed = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    rows = torch.randint(a, (b, data.draw(st.integers(1, a))), generator=seed)
    columns = torch.randint(p, (b, data.draw(st.integers(1, p))), generator=seed)
    expected = torch.stack([dense[i][rows[i]][:, columns[i]] for i in range(b)])
    torch.testing.assert_close(affinity.at(rows, columns).dense(), expected, **close)


@given(affinities())
@settings(max_examples=40)
def test_folded_weights_rank_targets_as_dense_does(affinity: Affinity) -> None:
    folded = affinity.folded()
    if folded is None:
        assert affinity.target is not None
        assert isinstance(affinity.curve, Elementwise)
        return
    scale, shift = folded
    inner = affinity.left @ affinity.right.mT
    inner = inner if scale is None else inner * scale[:, None]
    inner = inner if shift is None else inner + shift[:, None]
    ranked = affinity.dense().gather(-1, inner.argsort(-1))
    assert bool((ranked.diff(dim=-1) >= -1e-12).all())


@given(affinities(), st.sampled_from(["source", "target", "both"]))
@settings(max_examples=40)
def test_weights_multiply_dense_and_its_diagonal(affinity: Affinity, on: str) -> None:
    affinity = square(affinity)
    expected = affinity.dense()
    torch.testing.assert_close(affinity.diagonal(), expected.diagonal(dim1=-2, dim2=-1), **close)
    weight = drawn(*expected.shape[:2], seed=0, positive=True)
    expected = expected if on == "target" else expected * weight[:, :, None]
    expected = expected if on == "source" else expected * weight[:, None, :]
    weighted = affinity.weighted(weight, on)
    torch.testing.assert_close(weighted.dense(), expected, **close)
    torch.testing.assert_close(weighted.best()[0], expected.max(-1).values, **close)


@given(affinities((Linear,), count=2))
@settings(max_examples=40)
def test_linear_scores_add_up(pair: list[Affinity]) -> None:
    one, other = pair
    total, expected = one + other, one.dense() + other.dense()
    torch.testing.assert_close(total.dense(), expected, **close)
    torch.testing.assert_close(total.best()[0], expected.max(-1).values, **close)
    torch.testing.assert_close(total.mean(), expected.mean(-1), **close)


@given(affinities((Exp,), count=2))
@settings(max_examples=40)
def test_exponential_scores_multiply(pair: list[Affinity]) -> None:
    one, other = pair
    product, expected = one * other, one.dense() * other.dense()
    torch.testing.assert_close(product.dense(), expected, rtol=1e-11, atol=1e-12)
    best = expected.max(-1).values
    torch.testing.assert_close(product.best()[0], best, rtol=1e-11, atol=1e-12)


@EVERY_CURVE
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("targets", [4, 33, 200])
def test_ties_go_to_the_lower_index(curve: Curve, weighted: bool, targets: int) -> None:
    """Integers, whose products are exact: columns 1, 3, 5, ... are all the same, and the best."""
    left, right = torch.ones(2, 3, 4), torch.ones(2, targets, 4)
    right[:, ::2] = -1
    weight = torch.full((2, targets), 0.5) if weighted else None
    affinity = Affinity(left, right, target=weight, curve=curve)
    assert affinity.best()[1].tolist() == [[1] * 3] * 2
    order = [*range(1, targets, 2), *range(0, targets, 2)]
    assert affinity.nearest(targets)[1].tolist() == [[order] * 3] * 2


@EVERY_CURVE
@pytest.mark.parametrize("weights", ["none", "source", "target", "both"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_nan_attracts_nobody_and_merges_last(curve: Curve, weights: str, value: float) -> None:
    features = torch.nn.functional.normalize(drawn(2, 9, 4, seed=0), dim=-1)
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


@EVERY_CURVE
@pytest.mark.parametrize("target", [None, torch.ones(2, 0)])
def test_sources_without_any_target_have_the_lowest_score_too(curve: Curve, target: Any) -> None:
    best, index = Affinity(torch.ones(2, 3, 4), torch.ones(2, 0, 4), None, target, curve).best()
    assert best.shape == index.shape == (2, 3)
    assert bool((best <= 0).all())


@EVERY_CURVE
def test_curves_increase(curve: Curve) -> None:
    inner = torch.linspace(-2, 2, 50, dtype=torch.float64)
    assert bool((curve(inner).diff() > 0).all())


@pytest.mark.parametrize(
    ("curve", "on", "factors"),
    [
        (LINEAR, "target", (True, False)),
        (Linear(0.5, 0.5), "target", (True, True)),
        (Exp(2.0), "target", (False, True)),
        (Elementwise(torch.sigmoid), "source", (False, False)),
    ],
)
def test_one_matrix_product_is_enough_where_there_is_a_folded_form(
    curve: Curve, on: str, factors: tuple[bool, bool]
) -> None:
    features = torch.randn(1, 6, 4)
    folded = Affinity(features, features, **{on: torch.rand(1, 6) + 0.1}, curve=curve).folded()
    assert folded is not None
    assert tuple(factor is not None for factor in folded) == factors
