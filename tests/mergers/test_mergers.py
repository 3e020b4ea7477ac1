"""Mergers against their sentences, group by group, on plans that drop, join and invent tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.matchers.sites import draws
from tokenzoo import Evidence, Merger, TokenMap, Tokens
from tokenzoo.mergers import Fused, Identity, Mean, NeighbourSum, TargetPlusMean, WeightedMean
from tokenzoo.scorers import FeatureNorm, Similarity
from tokenzoo.testing.strategies import plans

PLAIN: list[Merger] = [Identity(), Mean(), TargetPlusMean(), WeightedMean()]
EACH = pytest.mark.parametrize("merger", PLAIN, ids=repr)
LENGTH, COSINE = FeatureNorm(), Similarity("x")


def merged(
    merger: Merger,
    x: Tensor,
    plan: TokenMap,
    mass: Tensor | None = None,
    held: Tensor | None = None,
) -> Tokens:
    mass = torch.ones(x.shape[:2]) if mass is None else mass
    return merger.merge(Tokens(x, mass, held=held), plan, Evidence(x, mass=mass))


def by_hand(merger: Merger, x: Tensor, mass: Tensor, kept: int, group: list[int]) -> Tensor:
    """One output: what the merger's docstring says about the members of one group."""
    joins = [t for t in group if t != kept]
    own = x[kept] if kept >= 0 else torch.zeros_like(x[0])
    match merger:
        case Identity():
            return own
        case TargetPlusMean():
            return own + x[joins].mean(0) if joins else own
        case _ if not group:
            return torch.zeros_like(x[0])
        case Mean():
            return x[group].mean(0)
        case _:
            return (x[group] * mass[group][:, None]).sum(0) / mass[group].sum()


@EACH
@given(data=st.data(), b=st.integers(1, 3), n=st.integers(1, 10), seed=st.integers(0, 999))
@settings(max_examples=40)
def test_mergers_do_what_they_say(
    merger: Merger, data: st.DataObject, b: int, n: int, seed: int
) -> None:
    x, plan = draws(b, n, 3, seed=seed), data.draw(plans(images=b, tokens=n))
    mass = draws(b, n, seed=seed).abs().ceil()
    out = merged(merger, x, plan, mass)
    assert out.x.shape == (b, plan.kept, 3)
    for i in range(b):
        for slot in range(plan.kept):
            group = [t for t in range(n) if plan.dst[i, t] == slot]
            expected = by_hand(merger, x[i], mass[i], int(plan.keep[i, slot]), group)
            torch.testing.assert_close(out.x[i, slot], expected)
            assert out.mass[i, slot] == mass[i, group].sum()


def test_what_they_say_that_they_conserve() -> None:
    assert {merger for merger in PLAIN if "sum" in merger.conserves} == {WeightedMean()}
    assert all("mass" in merger.conserves for merger in PLAIN)


@EACH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_token_that_nobody_joins_is_unchanged_to_the_bit(
    merger: Merger, dtype: torch.dtype
) -> None:
    x = (draws(2, 6, 4) * 100).to(dtype)
    mass = torch.tensor([[3.0, 1, 7, 1 / 3, 5, 2]] * 2)
    plan = TokenMap(torch.tensor([[5, 0, 2]] * 2), torch.tensor([[1, 2, 2, -1, 2, 0]] * 2))
    out = merged(merger, x, plan, mass)
    assert (out.x.dtype, out.mass.dtype) == (dtype, torch.float32)
    assert torch.equal(out.x[:, :2], x[:, [5, 0]])
    assert torch.equal(out.mass[:, :2], mass[:, [5, 0]])


@EACH
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_what_is_not_finite_stays_where_it_is(merger: Merger, value: float) -> None:
    """Token 0 stays alone, 3 is dropped; neither may spread, and an infinity alone stays one."""
    x = torch.ones(1, 5, 2)
    x[:, [0, 3]] = value
    out = merged(merger, x, TokenMap(torch.tensor([[0, 1]]), torch.tensor([[0, 1, 1, -1, 1]]))).x
    assert bool(out[:, 1].isfinite().all())
    torch.testing.assert_close(out[:, 0], x[:, 0], rtol=0, atol=0, equal_nan=True)


@EACH
def test_half_precision_is_summed_in_float32(merger: Merger) -> None:
    """2,048 ones and more: a float16 would stop counting at 2,048."""
    plan = TokenMap(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 4096, dtype=torch.long))
    out = merged(merger, torch.ones(1, 4096, 1, dtype=torch.float16), plan)
    assert out.mass.tolist() == [[4096]]
    assert out.x.item() == (2.0 if isinstance(merger, TargetPlusMean) else 1.0)


@EACH
def test_what_was_held_is_carried_on(merger: Merger) -> None:
    plan = TokenMap(torch.tensor([[0, 1]]), torch.tensor([[0, 1, 1]]))
    held = torch.tensor([[True, False, False]])
    out = merged(merger, torch.ones(1, 3, 1), plan, held=held)
    assert out.held is not None
    assert out.held.tolist() == [[True, False]]


# Tokens 4, 0 and 9 stay, and 9 takes in 3; 2 is dropped, the others become a new one.
B, N, KEPT, OTHERS = 2, 11, [4, 0, 9], [1, 5, 6, 7, 8, 10]
X = draws(B, N, 4)
NORMS = X.norm(dim=-1)
PLAN = TokenMap(
    torch.tensor([[*KEPT, -1]] * B), torch.tensor([[1, 3, -1, 2, 0, 3, 3, 3, 3, 2, 3]] * B)
)


@pytest.mark.parametrize("scorer", [None, LENGTH])
def test_a_new_token_is_the_sum_of_its_members_or_their_mean(scorer: FeatureNorm | None) -> None:
    out = merged(Fused(scorer), X, PLAN)
    assert torch.equal(out.x[:, :3], X[:, KEPT])  # whatever joins them
    weight = torch.full_like(NORMS, 1 / 6) if scorer is None else NORMS
    torch.testing.assert_close(out.x[:, 3], (X * weight[..., None])[:, OTHERS].sum(1))
    assert out.mass[0].tolist() == [1, 1, 2, 6]


@pytest.mark.parametrize("k", [1, 4, 40])
def test_a_kept_token_takes_in_its_neighbours(k: int) -> None:
    weighted = X * NORMS[..., None]
    cosine = torch.cosine_similarity(X[:, :, None], X[:, None], dim=-1)
    near = cosine.masked_fill(torch.eye(N, dtype=torch.bool), -torch.inf).argsort(-1).flip(-1)
    wanted = [
        X[i, t] + weighted[i, near[i, t, : min(k, N - 1)]].sum(0) for i in range(B) for t in KEPT
    ]
    out = merged(NeighbourSum(COSINE, LENGTH, k), X, PLAN).x
    torch.testing.assert_close(out[:, :3].flatten(0, 1), torch.stack(wanted))
    torch.testing.assert_close(out[:, 3], weighted[:, OTHERS].sum(1))


@pytest.mark.parametrize(("k", "wanted"), [(1, 2.0), (2, 3.0), (3, 3.0)])
def test_a_twin_is_a_neighbour_and_oneself_is_not(k: int, wanted: float) -> None:
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    drop = TokenMap(torch.tensor([[2]]), torch.tensor([[-1, -1, 0, -1]]))
    assert merged(NeighbourSum(COSINE, LENGTH, k), x, drop).x[0, 0, 0] == wanted


def test_neighbours_of_what_is_protected_alone_or_no_number() -> None:
    merger = NeighbourSum(COSINE, LENGTH, 40)
    assert torch.equal(merged(merger, X, TokenMap.identity(B, N)).x, X)
    held = TokenMap(PLAN.keep, PLAN.dst, held=torch.tensor([[True, False, False, False]] * B))
    out = merged(merger, X, held).x
    assert torch.equal(out[:, 0], X[:, 4])
    assert not torch.equal(out[:, 1], X[:, 0])
    out = merged(merger, X.index_fill(1, torch.tensor(7), torch.nan), PLAN).x
    assert bool(out[:, :3].isfinite().all())
    assert not bool(out[:, 3].isfinite().any())  # of which it is a member


def test_gradients_go_through_weights_only_if_they_learn() -> None:
    x = X.clone().requires_grad_()
    merged(Fused(LENGTH), x, PLAN).x.sum().backward()
    expected = torch.ones_like(NORMS)
    expected[:, 2:4] = 0  # dropped, and joined to a kept token
    expected[:, OTHERS] = NORMS[:, OTHERS]
    assert x.grad is not None
    torch.testing.assert_close(x.grad, expected[..., None].expand_as(x))
