"""Plans: they agree with loops over tokens, they compose, and `check` finds what contradicts itself."""

from __future__ import annotations

from dataclasses import replace

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


def test_take_gathers_along_the_tokens() -> None:
    values, index = torch.randn(2, 5, 3), torch.tensor([[4, 0], [1, 1]])
    for b in range(2):
        assert torch.equal(take(values, index)[b], values[b, index[b]])
        assert torch.equal(take(values[..., 0], index)[b], values[b, index[b], 0])


def test_identity_changes_nothing() -> None:
    plan = TokenMap.identity(2, 4)
    plan.check()
    y = torch.randn(2, 4, 3)
    assert plan.tokens == plan.kept == 4
    assert torch.equal(plan.unmerge(y), y)
    assert torch.equal(plan.sum(y), y)
    assert torch.equal(plan.of_kept(y), y)


def test_from_slots_by_hand() -> None:
    # Token 1 joins output 0, token 4 the new output 2, token 5 is dropped.
    plan = TokenMap.from_slots(
        torch.tensor([[3, 0, -1, 2]]), torch.tensor([[1, 4, 5]]), torch.tensor([[0, 2, -1]]), 6
    )
    plan.check()
    assert plan.keep.tolist() == [[3, 0, -1, 2]]
    assert plan.dst.tolist() == [[1, 0, 3, 0, 2, -1]]
    assert (plan.tokens, plan.kept) == (6, 4)


@given(any_plans())
@settings(max_examples=25)
def test_sums_gathers_and_spreads_equal_loops(plan: TokenMap) -> None:
    plan.check()
    b, n = plan.dst.shape
    values = torch.randn(b, n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = numbered(plan, 2)
    for i in range(b):
        for slot in range(plan.kept):
            members = [t for t in range(n) if plan.dst[i, t] == slot]
            expected = values[i, members].sum(0)
            torch.testing.assert_close(plan.sum(values)[i, slot], expected)
            torch.testing.assert_close(plan.sum(values[..., 0])[i, slot], expected[0])
            kept = int(plan.keep[i, slot])
            of_kept = plan.of_kept(values)[i, slot]
            assert torch.equal(of_kept, values[i, kept] if kept >= 0 else torch.zeros(3).double())
        for token in range(n):
            slot = int(plan.dst[i, token])
            expected = y[i, slot] if slot >= 0 else torch.full((2,), -7.0, dtype=torch.float64)
            assert torch.equal(plan.unmerge(y, fill=-7.0)[i, token], expected)


@given(any_plans())
@settings(max_examples=25)
def test_of_kept_of_two_dimensions_is_the_one_of_three(plan: TokenMap) -> None:
    values = torch.randn(*plan.dst.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plan.of_kept(values), plan.of_kept(values[..., None])[..., 0])


@given(any_plans())
@settings(max_examples=25)
def test_unmerge_takes_any_trailing_shape_and_dtype(plan: TokenMap) -> None:
    y = numbered(plan, 2, 3)
    b, n = plan.dst.shape
    assert plan.unmerge(y).shape == (b, n, 2, 3)
    assert torch.equal(plan.unmerge(y)[..., 1, 2], plan.unmerge(y[..., 1, 2]))
    labels = numbered(plan).long()
    assert plan.unmerge(labels, fill=-1).dtype == torch.int64
    assert torch.equal(plan.unmerge(labels, fill=-1) < 0, plan.dst < 0)


@given(chains())
@settings(max_examples=25)
def test_composition_is_one_after_the_other(chain: tuple[TokenMap, TokenMap]) -> None:
    first, second = chain
    both = first.then(second)
    assert (both.tokens, both.kept) == (first.tokens, second.kept)
    y = numbered(second, 2)
    step_by_step = first.unmerge(second.unmerge(y, fill=-1), fill=-1)
    assert torch.equal(both.unmerge(y, fill=-1), step_by_step)
    values = torch.randn(*first.dst.shape, 2, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(both.sum(values), second.sum(first.sum(values)))
    assert torch.equal(both.of_kept(values), second.of_kept(first.of_kept(values)))


@given(chains(), st.integers(0, 2))
@settings(max_examples=25)
def test_composition_is_associative_and_has_an_identity(
    chain: tuple[TokenMap, TokenMap], prefix: int
) -> None:
    first, second = (plan.after_prefix(prefix) for plan in chain)
    third = second.reordered(-torch.arange(second.kept).expand_as(second.keep))
    third = TokenMap.identity(*second.keep.shape).reordered(third.keep)
    left, right = first.then(second).then(third), first.then(second.then(third))
    assert torch.equal(left.keep, right.keep)
    assert torch.equal(left.dst, right.dst)
    same = (
        TokenMap.identity(*first.dst.shape).then(first).then(TokenMap.identity(*first.keep.shape))
    )
    assert torch.equal(same.keep, first.keep)
    assert torch.equal(same.dst, first.dst)


@given(any_plans())
@settings(max_examples=25)
def test_reordering_moves_outputs_and_no_token(plan: TokenMap) -> None:
    held = torch.rand(plan.keep.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    plan = TokenMap(plan.keep, plan.dst, held=held)
    sorted_plan = plan.by_position()
    sorted_plan.check()
    y = numbered(plan)
    rank = torch.where(plan.keep < 0, plan.tokens, plan.keep).argsort(dim=-1, stable=True)
    assert torch.equal(sorted_plan.unmerge(take(y, rank)), plan.unmerge(y))
    old = torch.where(sorted_plan.keep < 0, plan.tokens, sorted_plan.keep)
    assert torch.equal(old, old.sort(dim=-1).values)  # new tokens last
    assert sorted_plan.held is not None
    assert torch.equal(sorted_plan.held, take(held, rank))


def test_reordering_is_stable() -> None:
    plan = TokenMap.identity(1, 4).reordered(torch.tensor([[1, 0, 1, 0]]))
    assert plan.keep.tolist() == [[1, 3, 0, 2]]
    assert plan.dst.tolist() == [[2, 0, 3, 1]]


@given(any_plans(), st.integers(0, 3))
@settings(max_examples=25)
def test_a_prefix_stays_in_front(plan: TokenMap, prefix: int) -> None:
    held = torch.ones_like(plan.keep, dtype=torch.bool)
    lengths = torch.full(plan.keep.shape[:1], plan.kept)
    longer = TokenMap(plan.keep, plan.dst, lengths, held).after_prefix(prefix)
    longer.check()
    b = plan.keep.shape[0]
    assert (longer.tokens, longer.kept) == (plan.tokens + prefix, plan.kept + prefix)
    front = torch.arange(prefix).expand(b, prefix)
    assert torch.equal(longer.keep[:, :prefix], front)
    assert torch.equal(longer.dst[:, :prefix], front)
    y = numbered(longer)
    assert torch.equal(longer.unmerge(y)[:, prefix:], plan.unmerge(y[:, prefix:]))
    assert longer.lengths is not None
    assert torch.equal(longer.lengths, lengths + prefix)
    assert longer.held is not None
    assert not longer.held[:, :prefix].any()
    assert longer.held[:, prefix:].all()


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
    own = take(plan.keep, take(plan.dst, away))
    assert torch.equal(own, away)
    ones = plan.sum(torch.ones(b, free + held))
    assert torch.equal(take(ones, take(plan.dst, away)), torch.ones(b, held))
    # The free tokens are together in the same groups as before.
    before, after = inner.dst, take(plan.dst, at)
    together = (before[:, :, None] == before[:, None]) & (before >= 0)[:, :, None]
    assert torch.equal((after[:, :, None] == after[:, None]) & (after >= 0)[:, :, None], together)
    assert torch.equal(after < 0, before < 0)


def test_carry_adds_up_masses_and_keeps_what_is_held() -> None:
    plan = TokenMap(torch.tensor([[2, 0, -1]]), torch.tensor([[1, 0, 0, -1]]))
    mass = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    x, after = torch.randn(1, 4, 2), torch.randn(1, 3, 2)
    plain = plan.carry(Tokens(x, mass), after)
    assert plain.mass.tolist() == [[5.0, 1.0, 0.0]]
    assert plain.held is None
    assert plain.x is after
    held = torch.tensor([[True, False, False, True]])
    assert torch.equal(
        plan.carry(Tokens(x, mass, held=held), after).held, torch.tensor([[False, True, False]])
    )
    here = torch.tensor([[True, False, False]])
    anew = TokenMap(plan.keep, plan.dst, held=here).carry(Tokens(x, mass, held=held), after)
    assert torch.equal(anew.held, here)


@given(st.data())
@settings(max_examples=40)
def test_what_is_known_to_be_complete_changes_no_result(data: st.DataObject) -> None:
    images, tokens = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12))
    marks = data.draw(st.booleans())

    def both(plan: TokenMap) -> tuple[TokenMap, TokenMap]:
        held = plan.keep % 2 == 0 if marks else None
        return replace(plan, complete=True, held=held), replace(plan, complete=False, held=held)

    def same(one: TokenMap, other: TokenMap, *, complete: bool = True) -> None:
        one.check()
        assert (one.complete, other.complete) == (complete, False)
        assert torch.equal(one.keep, other.keep)
        assert torch.equal(one.dst, other.dst)
        assert (one.held is None) == (other.held is None)
        assert one.held is None or other.held is None or torch.equal(one.held, other.held)

    drawn = plans(images=images, tokens=tokens, dropping=False, new=False)
    plan, plain = both(data.draw(drawn))
    later = plans(images=images, tokens=plan.kept, dropping=False, new=False)
    next_plan, next_plain = both(data.draw(later))
    partial = data.draw(plans(images=images, tokens=plan.kept))
    partial = replace(partial, complete=False)

    same(plan, plain)
    same(plan.then(next_plan), plain.then(next_plain))
    same(plan.then(partial), plain.then(partial), complete=False)
    same(plan.by_position(), plain.by_position())
    same(plan.reordered(-plan.keep), plain.reordered(-plain.keep))
    same(plan.after_prefix(2), plain.after_prefix(2))
    free = torch.arange(1, tokens + 1).expand(images, tokens)
    first = torch.zeros(images, 1, dtype=torch.int64)
    same(plan.with_held(free, first), plain.with_held(free, first))

    values = torch.randn(images, tokens, 3, generator=torch.Generator().manual_seed(0))
    y = numbered(plan, 2)
    for given_plan in (plan, plain):
        assert torch.equal(given_plan.sum(values), plain.sum(values))
        assert torch.equal(given_plan.sum(values[..., 0]), plain.sum(values[..., 0]))
        assert torch.equal(given_plan.of_kept(values), plain.of_kept(values))
        assert torch.equal(given_plan.unmerge(y, fill=-7.0), plain.unmerge(y, fill=-7.0))
    seen = Tokens(values, torch.ones(images, tokens), held=values[..., 0] > 0)
    ours, theirs = (p.carry(seen, p.of_kept(values)) for p in (plan, plain))
    assert ours.held is not None
    assert theirs.held is not None
    assert torch.equal(ours.held, theirs.held)
    assert torch.equal(ours.mass, theirs.mass)


def test_slots_that_are_known_to_be_complete() -> None:
    given_slots = torch.tensor([[3, 0]]), torch.tensor([[1, 2]]), torch.tensor([[1, 1]]), 4
    plan = TokenMap.from_slots(*given_slots, complete=True)
    plan.check()
    other = TokenMap.from_slots(*given_slots)
    assert (plan.complete, other.complete) == (True, False)
    assert torch.equal(plan.keep, other.keep)
    assert torch.equal(plan.dst, other.dst)


def test_gradients_flow_through_a_plan() -> None:
    plan = TokenMap(torch.tensor([[0, -1]]), torch.tensor([[0, 1, -1]]))
    values = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(plan.sum, values)
    assert torch.autograd.gradcheck(plan.of_kept, values)
    assert torch.autograd.gradcheck(
        plan.unmerge, torch.randn(1, 2, 2, dtype=torch.float64, requires_grad=True)
    )


def test_joins_are_the_same_plan_as_slots() -> None:
    generator = torch.Generator().manual_seed(0)
    for n, r in ((2, 1), (9, 4), (10, 1), (10, 0)):
        order = torch.rand(3, n, generator=generator).argsort(-1)
        gone, kept = order[:, :r], order[:, r:]
        at = torch.randint(n - r, (3, r), generator=generator)
        plan = TokenMap.from_joins(gone, kept.gather(1, at), n)
        plan.check()
        assert plan.complete
        other = TokenMap.from_slots(kept, gone, at, n).by_position()
        assert torch.equal(plan.keep, other.keep)
        assert torch.equal(plan.dst, other.dst)
