"""Restorers against their formulas, on tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenzoo.mergers import CopyBack, NeighbourUpdate
from tokenzoo.scorers import NegativeSquaredDistance, Similarity
from tokenzoo.token_map import TokenMap

N, C = 9, 3


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dropping(keep: list[int]) -> TokenMap:
    """One image of which these tokens stay, in this order."""
    gone = [i for i in range(N) if i not in keep]
    slots = torch.full((1, len(gone)), -1)
    return TokenMap.from_slots(torch.tensor([keep]), torch.tensor([gone]), slots, N)


@pytest.mark.parametrize("keep", [[1, 4, 5, 8], [8, 1, 5, 4], [3]])
@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("pairs", [NegativeSquaredDistance("x"), Similarity("x")])
def test_a_removed_token_moves_as_its_nearest_neighbours(
    keep: list[int], k: int, pairs: NegativeSquaredDistance | Similarity
) -> None:
    x, left = drawn(1, N, C), drawn(1, len(keep), C, seed=1)
    plan, restorer = dropping(keep), NeighbourUpdate(pairs, k)
    found = restorer.restore(left, x, plan, restorer.prepare(x, plan))[0]

    def far(i: int, j: int) -> float:
        if isinstance(pairs, Similarity):
            return -float(torch.cosine_similarity(x[0, i], x[0, j], 0))
        return float((x[0, i] - x[0, j]).norm())

    for i in range(N):
        near = sorted(range(len(keep)), key=lambda slot: far(i, keep[slot]))[:k]
        moves = torch.stack([left[0, slot] - x[0, keep[slot]] for slot in near])
        wanted = left[0, keep.index(i)] if i in keep else x[0, i] + moves.mean(0)
        assert torch.allclose(found[i], wanted, atol=1e-9), i


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_neighbour_that_is_not_finite_counts_as_unchanged(bad: float) -> None:
    x, keep = drawn(1, N, C), [1, 4, 5, 8]
    left = x[:, keep].clone()
    left[0, 2] = bad
    plan, restorer = dropping(keep), NeighbourUpdate(NegativeSquaredDistance("x"), 4)
    found = restorer.restore(left, x, plan, restorer.prepare(x, plan))[0]
    gone = [i for i in range(N) if i not in keep]
    assert torch.allclose(found[gone], x[0, gone])
    assert torch.equal(found[5], left[0, 2]) or bool(found[5].isnan().all())


def test_copies_and_dropped_tokens() -> None:
    x, left = drawn(1, 4, C).float(), drawn(1, 2, C, seed=1).bfloat16()
    plan = TokenMap(torch.tensor([[0, 2]]), torch.tensor([[0, 1, 1, -1]]))
    found = CopyBack().restore(left, x, plan, ())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found[0], torch.stack([*left[0, [0, 1, 1]], x[0, 3].bfloat16()]))
