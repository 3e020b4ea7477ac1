"""Fused and NeighbourSum, by their sentences; and what a depth decides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tokenzoo
from tokenzoo import Evidence, TokenMap, Tokens
from tokenzoo.errors import BadArgumentError
from tokenzoo.matchers import Bipartite, ByDepth, Drop, SelectAssign, TopK
from tokenzoo.mergers import Fused, NeighbourSum
from tokenzoo.scorers import FeatureNorm, Similarity

N, B = 11, 2
X = torch.randn(B, N, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
EVIDENCE = Evidence(X, mass=torch.ones(B, N))
SCORES = X.norm(dim=-1)


def plan(new: int = 1) -> TokenMap:
    """Tokens 4, 0 and 9 stay, and 9 takes in 3; the others, but 2, become a new one."""
    keep = torch.tensor([[4, 0, 9] + [-1] * new]).expand(B, -1)
    slots = torch.tensor([[3, -1, 2, 3, 3, 3, 3, 3]]).expand(B, -1)
    return TokenMap.from_slots(
        keep, torch.tensor([[1, 2, 3, 5, 6, 7, 8, 10]]).expand(B, -1), slots, N
    )


OTHERS = [1, 5, 6, 7, 8, 10]


@pytest.mark.parametrize("scorer", [None, FeatureNorm()])
def test_a_new_token_is_the_sum_of_its_members_or_their_mean(scorer: FeatureNorm | None) -> None:
    merged = Fused(scorer).merge(Tokens(X, EVIDENCE.mass), plan(), EVIDENCE)
    assert torch.equal(merged.x[:, :3], X[:, [4, 0, 9]])  # whatever joins them
    weight = torch.full_like(SCORES, 1 / 6) if scorer is None else SCORES
    wanted = (X * weight[..., None])[:, OTHERS].sum(1)
    torch.testing.assert_close(merged.x[:, 3], wanted)
    assert merged.mass[0].tolist() == [1, 1, 2, 6]


def neighbours(i: int, t: int, k: int) -> list[int]:
    alike = torch.cosine_similarity(X[i], X[i, t][None], dim=-1)
    others = [j for j in range(N) if j != t]
    return sorted(others, key=lambda j: -float(alike[j]))[:k]


@pytest.mark.parametrize("k", [1, 4, 40])
def test_a_kept_token_takes_in_its_neighbours(k: int) -> None:
    merger = NeighbourSum(Similarity("x"), FeatureNorm(), k)
    merged = merger.merge(Tokens(X, EVIDENCE.mass), plan(), EVIDENCE)
    for i in range(B):
        for slot, t in enumerate([4, 0, 9]):
            near = neighbours(i, t, k)
            wanted = X[i, t] + sum(SCORES[i, j] * X[i, j] for j in near)
            torch.testing.assert_close(merged.x[i, slot], wanted)
    torch.testing.assert_close(merged.x[:, 3], (X * SCORES[..., None])[:, OTHERS].sum(1))


def test_a_twin_is_a_neighbour_and_oneself_is_not() -> None:
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    evidence = Evidence(x, mass=torch.ones(1, 4))
    drop = TokenMap.from_slots(
        torch.tensor([[2]]), torch.tensor([[0, 1, 3]]), torch.full((1, 3), -1), 4
    )
    for k, wanted in ((1, 2.0), (2, 3.0), (3, 3.0)):
        merger = NeighbourSum(Similarity("x"), FeatureNorm(), k)
        assert float(merger.merge(Tokens(x, evidence.mass), drop, evidence).x[0, 0, 0]) == wanted


def test_what_is_protected_or_alone_is_unchanged() -> None:
    merger = NeighbourSum(Similarity("x"), FeatureNorm(), 3)
    tokens = Tokens(X, EVIDENCE.mass)
    same = merger.merge(tokens, TokenMap.identity(B, N), EVIDENCE)
    assert torch.equal(same.x, X)
    held = torch.tensor([[True, False, False, False]]).expand(B, -1)
    some = merger.merge(tokens, TokenMap(plan().keep, plan().dst, held=held), EVIDENCE)
    assert torch.equal(some.x[:, 0], X[:, 4])
    assert not torch.equal(some.x[:, 1], X[:, 0])


def test_nobody_takes_in_what_is_no_number() -> None:
    x = X.clone()
    x[:, 7] = torch.nan
    evidence = Evidence(x, mass=EVIDENCE.mass)
    merged = NeighbourSum(Similarity("x"), FeatureNorm(), 40).merge(
        Tokens(x, evidence.mass), plan(), evidence
    )
    assert bool(merged.x[:, :3].isfinite().all())
    assert not bool(merged.x[:, 3].isfinite().any())  # of which it is a member


def test_gradients_go_through_weights_only_if_they_learn() -> None:
    x = X.clone().requires_grad_()
    evidence = Evidence(x, mass=EVIDENCE.mass)
    Fused(FeatureNorm()).merge(Tokens(x, evidence.mass), plan(), evidence).x.sum().backward()
    expected = torch.ones_like(SCORES)
    expected[:, 2:4] = 0  # dropped, and joined to a kept token
    for j in OTHERS:
        expected[:, j] = SCORES[:, j]
    grad: Tensor = x.grad  # pyright: ignore[reportAssignmentType]
    torch.testing.assert_close(grad, expected[..., None].expand_as(grad))


def test_a_depth_decides() -> None:
    first, last = Bipartite(Similarity("x")), SelectAssign(TopK(FeatureNorm()), Drop())
    match = ByDepth(first, last, 0.5)
    assert match.needs == {"depth"}
    assert match.min_tokens(11) == 6
    for depth, part in ((0.0, first), (0.49, first), (0.5, last), (0.9, last)):
        evidence = Evidence(X, mass=EVIDENCE.mass, depth=depth)
        found, wanted = match.match(evidence, 8), part.match(evidence, 8)
        assert torch.equal(found.keep, wanted.keep)
        assert torch.equal(found.dst, wanted.dst)
        n = X.shape[1]
        with pytest.raises(
            BadArgumentError, match=rf"keep=3 of {n} tokens.*down to {(n + 1) // 2}: "
        ):
            match.match(evidence, 3)  # the last could, the first cannot


def test_pitome_is_another_at_another_depth() -> None:
    early, late = (
        tokenzoo.build("pitome", keep=8).reduce(X, keys=X, depth=depth).plan for depth in (0, 0.9)
    )
    assert not torch.equal(early.dst, late.dst)
    with pytest.raises(BadArgumentError, match="depth=2"):
        tokenzoo.build("pitome", keep=8).reduce(X, keys=X, depth=2)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Fused(Similarity()), "scorer="),  # pyright: ignore[reportArgumentType]
        (lambda: NeighbourSum(Similarity("x"), FeatureNorm(), 0), "k=0"),
        (lambda: NeighbourSum(FeatureNorm(), FeatureNorm()), "pairs="),  # pyright: ignore[reportArgumentType]
        (lambda: ByDepth(Bipartite(Similarity()), Drop()), "last="),  # pyright: ignore[reportArgumentType]
        (lambda: ByDepth(Bipartite(Similarity()), Bipartite(Similarity()), 2), "border=2"),
    ],
)
def test_options_that_cannot_work(make, named: str) -> None:
    with pytest.raises(BadArgumentError, match=named):
        make()
