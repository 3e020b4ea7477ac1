"""Mergers against their sentences, group by group, on plans that drop, join and invent tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenzoo import Merger, TokenMap, Tokens
from tokenzoo.mergers import Identity, Mean, TargetPlusMean, WeightedMean
from tokenzoo.testing.strategies import Example, plans

MERGERS: list[Merger] = [Identity(), Mean(), TargetPlusMean(), WeightedMean()]
EVIDENCE = Example.drawn().evidence()  # of no interest to these


@st.composite
def cases(draw: st.DrawFn, *, dropping: bool = True, new: bool = True) -> tuple[Tokens, TokenMap]:
    b, n = draw(st.integers(1, 3)), draw(st.integers(1, 10))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    x = torch.randn(b, n, 3, generator=generator, dtype=torch.float64)
    mass = torch.randint(1, 6, (b, n), generator=generator).double()
    return Tokens(x, mass), draw(plans(images=b, tokens=n, dropping=dropping, new=new))


def by_hand(merger: Merger, x: torch.Tensor, mass: torch.Tensor, kept: int, group: list[int]):
    """One output: what the merger's docstring says about the members of one group."""
    joins = [t for t in group if t != kept]
    own = x[kept] if kept >= 0 else torch.zeros(3, dtype=x.dtype)
    if isinstance(merger, Identity):
        return own
    if isinstance(merger, TargetPlusMean):
        return own + x[joins].mean(0) if joins else own
    if not group:
        return torch.zeros(3, dtype=x.dtype)
    if isinstance(merger, Mean):
        return x[group].mean(0)
    return (x[group] * mass[group][:, None]).sum(0) / mass[group].sum()


@pytest.mark.parametrize("merger", MERGERS, ids=repr)
@given(case=cases())
@settings(max_examples=40)
def test_mergers_do_what_they_say(merger: Merger, case: tuple[Tokens, TokenMap]) -> None:
    tokens, plan = case
    merged = merger.merge(tokens, plan, EVIDENCE)
    assert merged.x.shape == (*plan.keep.shape, 3)
    assert merged.x.dtype == tokens.x.dtype
    for i in range(plan.keep.shape[0]):
        for slot in range(plan.kept):
            group = [t for t in range(plan.tokens) if plan.dst[i, t] == slot]
            expected = by_hand(merger, tokens.x[i], tokens.mass[i], int(plan.keep[i, slot]), group)
            torch.testing.assert_close(merged.x[i, slot], expected)
            assert merged.mass[i, slot] == tokens.mass[i, group].sum()


@pytest.mark.parametrize("merger", MERGERS, ids=repr)
@given(case=cases(dropping=False, new=False))
@settings(max_examples=25)
def test_what_a_merger_conserves(merger: Merger, case: tuple[Tokens, TokenMap]) -> None:
    tokens, plan = case
    merged = merger.merge(tokens, plan, EVIDENCE)
    assert "mass" in merger.conserves
    torch.testing.assert_close(merged.mass.sum(1), tokens.mass.sum(1))
    if "sum" in merger.conserves:
        before = (tokens.x * tokens.mass[..., None]).sum(1)
        torch.testing.assert_close((merged.x * merged.mass[..., None]).sum(1), before)


def test_only_the_weighted_mean_conserves_the_sum() -> None:
    assert [merger for merger in MERGERS if "sum" in merger.conserves] == [WeightedMean()]


@pytest.mark.parametrize("merger", MERGERS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_token_that_nobody_joins_is_unchanged_to_the_bit(
    merger: Merger, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(2, 6, 4, generator=generator) * 100).to(dtype)
    mass = torch.tensor([[3.0, 1, 7, 1 / 3, 5, 2]] * 2)
    plan = TokenMap(torch.tensor([[5, 0, 2]] * 2), torch.tensor([[1, 2, 2, -1, 2, 0]] * 2))
    plan.check()
    merged = merger.merge(Tokens(x, mass), plan, EVIDENCE)
    assert merged.x.dtype == dtype
    assert torch.equal(merged.x[:, :2], x[:, [5, 0]])
    assert torch.equal(merged.mass[:, :2], mass[:, [5, 0]])
    assert merged.mass.dtype == torch.float32


@pytest.mark.parametrize("merger", MERGERS, ids=repr)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_what_is_not_finite_stays_where_it_is(merger: Merger, value: float) -> None:
    """Token 0 stays alone, 3 is dropped; neither may spread, and an infinity alone stays one."""
    x = torch.ones(1, 5, 2)
    x[:, [0, 3]] = value
    plan = TokenMap(torch.tensor([[0, 1]]), torch.tensor([[0, 1, 1, -1, 1]]))
    merged = merger.merge(Tokens(x, torch.ones(1, 5)), plan, EVIDENCE)
    assert bool(merged.x[:, 1].isfinite().all())
    alone = merged.x[:, 0]
    assert torch.equal(alone.isnan(), x[:, 0].isnan())
    assert torch.equal(alone.nan_to_num(), x[:, 0].nan_to_num())


@pytest.mark.parametrize("merger", MERGERS, ids=repr)
def test_gradients_are_those_of_the_arithmetic(merger: Merger) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    mass = torch.tensor([[1.0, 2, 3, 4, 5, 6]] * 2, dtype=torch.float64)
    plan = TokenMap(torch.tensor([[5, -1, 2]] * 2), torch.tensor([[1, 2, 2, -1, 1, 0]] * 2))

    def merged(values: torch.Tensor) -> torch.Tensor:
        return merger.merge(Tokens(values, mass), plan, EVIDENCE).x

    assert torch.autograd.gradcheck(merged, x)


@pytest.mark.parametrize("merger", MERGERS, ids=repr)
def test_half_precision_is_summed_in_float32(merger: Merger) -> None:
    """2,048 ones and more: a float16 would stop counting at 2,048."""
    n = 4096
    x = torch.ones(1, n, 1, dtype=torch.float16)
    plan = TokenMap(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, n, dtype=torch.long))
    merged = merger.merge(Tokens(x, torch.ones(1, n)), plan, EVIDENCE)
    assert merged.mass.tolist() == [[n]]
    assert merged.x.item() == (2.0 if isinstance(merger, TargetPlusMean) else 1.0)


@pytest.mark.parametrize("merger", MERGERS, ids=repr)
def test_what_was_held_is_carried_on(merger: Merger) -> None:
    held = torch.tensor([[True, False, False]])
    plan = TokenMap(torch.tensor([[0, 1]]), torch.tensor([[0, 1, 1]]))
    merged = merger.merge(Tokens(torch.ones(1, 3, 1), torch.ones(1, 3), held=held), plan, EVIDENCE)
    assert merged.held is not None
    assert merged.held.tolist() == [[True, False]]
