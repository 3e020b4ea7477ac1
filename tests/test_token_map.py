"""Token maps: they agree with loops over tokens, and they compose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenzoo import TokenMap, Tokens
from tokenzoo.testing.strategies import plans
from tokenzoo.token_map import take


@st.composite
def any_plans(draw: st.DrawFn) -> TokenMap:
    return draw(plans(images=draw(st.integers(1, 3)), tokens=draw(st.integers(1, 12))))


@st.composite
def chains(draw: st.DrawFn) -> tuple[TokenMap, TokenMap]:
    first = draw(any_plans())
    return first, draw(plans(images=first.keep.shape[0], tokens=first.kept))


def numbered(plan: TokenMap, *shape: int) -> torch.Tensor:
    """Numbers for the outputs of a plan, all different."""
    count = plan.keep.numel() * torch.Size(shape).numel()
    return torch.arange(count, dtype=torch.float64).view(*plan.keep.shape, *shape)


def drawn(plan: TokenMap, *shape: int) -> torch.Tensor:
    """Values of the inputs of a plan."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*plan.dst.shape, *shape, generator=generator, dtype=torch.float64)


def same(one: TokenMap, other: TokenMap) -> None:
    assert torch.equal(one.keep, other.keep)
    assert torch.equal(one.dst, other.dst)
    for a, b in ((one.held, other.held), (one.lengths, other.lengths)):
        assert (a is None) == (b is None)
        assert a is None or b is None or torch.equal(a, b)


def test_take_gathers_along_the_tokens() -> None:
    values, index = torch.randn(2, 5, 3), torch.tensor([[4, 0], [1, 1]])
    for b in range(2):
        assert torch.equal(take(values, index)[b], values[b, index[b]])
        assert torch.equal(take(values[..., 0], index)[b], values[b, index[b], 0])


def test_from_slots_by_hand() -> None:
    # Token 1 joins output 0, token 4 the new output 2, token 5 is dropped.
    plan = TokenMap.from_slots(
        torch.tensor([[3, 0, -1, 2]]), torch.tensor([[1, 4, 5]]), torch.tensor([[0, 2, -1]]), 6
    )
    plan.check()
    assert plan.keep.tolist() == [[3, 0, -1, 2]]
    assert plan.dst.tolist() == [[1, 0, 3, 0, 2, -1]]
    assert (plan.tokens, plan.kept) == (6, 4)


@pytest.mark.parametrize(("n", "r"), [(2, 1), (9, 4), (10, 1), (10, 0)])
def test_joins_and_complete_slots_are_the_same_plan_as_slots(n: int, r: int) -> None:
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(3, n, generator=generator).argsort(-1)
    gone, kept = order[:, :r], order[:, r:]
    at = torch.randint(n - r, (3, r), generator=generator)
    slots = TokenMap.from_slots(kept, gone, at, n)
    assert not slots.complete
    for plan, other in (
        (TokenMap.from_slots(kept, gone, at, n, complete=True), slots),
        (TokenMap.from_joins(gone, kept.gather(1, at), n), slots.by_position()),
    ):
        plan.check()
        assert plan.complete
        same(plan, other)


@given(any_plans())
@settings(max_examples=25)
def test_sums_gathers_and_spreads_equal_loops(plan: TokenMap) -> None:
    plan.check()
    b, n = plan.dst.shape
    values, y = drawn(plan, 3), numbered(plan, 2, 3)
    for i in range(b):
        for slot in range(plan.kept):
            expected = values[i, plan.dst[i] == slot].sum(0)
            torch.testing.assert_close(plan.sum(values)[i, slot], expected)
            torch.testing.assert_close(plan.sum(values[..., 0])[i, slot], expected[0])
            kept = int(plan.keep[i, slot])
            expected = values[i, kept] if kept >= 0 else torch.zeros_like(values[i, 0])
            assert torch.equal(plan.of_kept(values)[i, slot], expected)
            assert torch.equal(plan.of_kept(values[..., 0])[i, slot], expected[0])
        for token in range(n):
            slot = int(plan.dst[i, token])
            expected = y[i, slot] if slot >= 0 else torch.full_like(y[i, 0], -7)
            assert torch.equal(plan.unmerge(y, fill=-7.0)[i, token], expected)
            label = plan.unmerge(y[..., 0, 0].long(), fill=-7)[i, token]
            assert label.tolist() == int(expected[0, 0])


@given(chains())
@settings(max_examples=25)
def test_composition_is_one_after_the_other(chain: tuple[TokenMap, TokenMap]) -> None:
    first, second = chain
    both = first.then(second)
    assert (both.tokens, both.kept) == (first.tokens, second.kept)
    y, values = numbered(second, 2), drawn(first, 2)
    step_by_step = first.unmerge(second.unmerge(y, fill=-1), fill=-1)
    assert torch.equal(both.unmerge(y, fill=-1), step_by_step)
    torch.testing.assert_close(both.sum(values), second.sum(first.sum(values)))
    assert torch.equal(both.of_kept(values), second.of_kept(first.of_kept(values)))


@given(chains(), st.integers(0, 2))
@settings(max_examples=25)
def test_composition_is_associative_and_has_an_identity(
    chain: tuple[TokenMap, TokenMap], prefix: int
) -> None:
    first, second = (plan.after_prefix(prefix) for plan in chain)
    turned = -torch.arange(second.kept).expand_as(second.keep)
    third = TokenMap.identity(*second.keep.shape).reordered(turned)
    same(first.then(second).then(third), first.then(second.then(third)))
    before, after = TokenMap.identity(*first.dst.shape), TokenMap.identity(*first.keep.shape)
    same(before.then(first).then(after), first)


@given(any_plans())
@settings(max_examples=25)
def test_reordering_moves_outputs_and_no_token(plan: TokenMap) -> None:
    held = torch.rand(plan.keep.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    plan = replace(plan, held=held)
    by_position = plan.by_position()
    by_position.check()
    y = numbered(plan)
    rank = torch.where(plan.keep < 0, plan.tokens, plan.keep).argsort(dim=-1, stable=True)
    assert torch.equal(by_position.unmerge(take(y, rank)), plan.unmerge(y))
    assert torch.equal(by_position.keep, take(plan.keep, rank))  # new tokens last
    assert by_position.held is not None
    assert torch.equal(by_position.held, take(held, rank))


def test_reordering_is_stable() -> None:
    plan = TokenMap.identity(1, 4).reordered(torch.tensor([[1, 0, 1, 0]]))
    assert plan.keep.tolist() == [[1, 3, 0, 2]]
    assert plan.dst.tolist() == [[2, 0, 3, 1]]


@given(any_plans(), st.integers(0, 3))
@settings(max_examples=25)
def test_a_prefix_stays_in_front(plan: TokenMap, prefix: int) -> None:
    held = torch.ones_like(plan.keep, dtype=torch.bool)
    lengths = torch.full(plan.keep.shape[:1], plan.kept)
    longer = replace(plan, lengths=lengths, held=held).after_prefix(prefix)
    longer.check()
    front = torch.arange(prefix).expand(len(held), prefix)
    for index, old in ((longer.keep, plan.keep), (longer.dst, plan.dst)):
        expected = torch.where(old < 0, -1, old + prefix)
        assert torch.equal(index, torch.cat([front, expected], 1))
    assert longer.lengths is not None
    assert torch.equal(longer.lengths, lengths + prefix)
    assert longer.held is not None
    assert torch.equal(longer.held, torch.cat([torch.zeros_like(front).bool(), held], 1))


@given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 4), st.data())
@settings(max_examples=25)
def test_beside_leaves_the_held_alone(b: int, free: int, held: int, data: st.DataObject) -> None:
    inner = data.draw(plans(images=b, tokens=free))
    seed = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    order = torch.rand(b, free + held, generator=seed).argsort(-1)
    at, away = order[:, :free].sort(-1).values, order[:, free:].sort(-1).values
    plan = inner.with_held(at, away)
    plan.check()
    assert (plan.tokens, plan.kept) == (free + held, inner.kept + held)
    slots = take(plan.dst, away)
    assert torch.equal(take(plan.keep, slots), away)
    ones = plan.sum(torch.ones(b, free + held))
    assert torch.equal(take(ones, slots), torch.ones(b, held))
    # The free tokens are together in the same groups as before.
    before, after = inner.dst, take(plan.dst, at)
    together = (before[:, :, None] == before[:, None]) & (before >= 0)[:, :, None]
    assert torch.equal((after[:, :, None] == after[:, None]) & (after >= 0)[:, :, None], together)
    assert torch.equal(after < 0, before < 0)


def test_carry_adds_up_masses_and_keeps_what_is_held() -> None:
    plan = TokenMap(torch.tensor([[2, 0, -1]]), torch.tensor([[1, 0, 0, -1]]))
    x, after = torch.randn(1, 4, 2), torch.randn(1, 3, 2)
    mass, held = torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[True, False, False, True]])
    plain = plan.carry(Tokens(x, mass), after)
    assert plain.mass.tolist() == [[5.0, 1.0, 0.0]]
    assert plain.held is None
    assert plain.x is after
    for here, expected in ((None, [False, True, False]), ([True, False, False],) * 2):
        own = replace(plan, held=None if here is None else torch.tensor([here]))
        carried = own.carry(Tokens(x, mass, held=held), after)
        assert carried.held is not None
        assert carried.held.tolist() == [expected]


@given(st.data())
@settings(max_examples=40)
def test_what_is_known_to_be_complete_changes_no_result(data: st.DataObject) -> None:
    images, tokens = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12))
    marks = data.draw(st.booleans())

    def both(tokens: int) -> tuple[TokenMap, TokenMap]:
        """One that is complete and says so, and one that does not."""
        plan = data.draw(plans(images=images, tokens=tokens, dropping=False, new=False))
        plan = replace(plan, held=plan.keep % 2 == 0 if marks else None)
        return replace(plan, complete=True), replace(plan, complete=False)

    first = both(tokens)
    later = both(first[0].kept)
    partial = replace(data.draw(plans(images=images, tokens=first[0].kept)), complete=False)
    free = torch.arange(1, tokens + 1).expand(images, tokens)
    held = torch.zeros(images, 1, dtype=torch.int64)
    plan_of: list[Callable[[TokenMap, TokenMap], TokenMap]] = [
        lambda plan, later: plan,
        lambda plan, later: plan.then(later),
        lambda plan, later: plan.by_position(),
        lambda plan, later: plan.reordered(-plan.keep),
        lambda plan, later: plan.after_prefix(2),
        lambda plan, later: plan.with_held(free, held),
    ]
    for make in plan_of:
        one, other = map(make, first, later)
        one.check()
        assert (one.complete, other.complete) == (True, False)
        same(one, other)
    one, other = (plan.then(partial) for plan in first)
    assert not one.complete
    same(one, other)

    values, y = drawn(first[0], 3), numbered(first[0], 2)
    seen = Tokens(values, torch.ones(images, tokens), held=values[..., 0] > 0)
    results: list[list[torch.Tensor]] = []
    for plan in first:
        carried = plan.carry(seen, plan.of_kept(values))
        assert carried.held is not None
        sums = [plan.sum(values), plan.sum(values[..., 0])]
        results.append([*sums, plan.unmerge(y), carried.x, carried.held, carried.mass])
    assert all(map(torch.equal, *results))


def test_gradients_flow_through_a_plan() -> None:
    plan = TokenMap(torch.tensor([[0, -1]]), torch.tensor([[0, 1, -1]]))
    values = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    for function, n in ((plan.sum, 3), (plan.of_kept, 3), (plan.unmerge, 2)):
        assert torch.autograd.gradcheck(function, values[:, :n].detach().requires_grad_())
