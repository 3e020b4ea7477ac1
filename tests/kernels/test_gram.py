"""Inner products by halves are inner products, and symmetric to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.drawing import draws
from tests.matchers.sites import pool_of, site
from tokenzoo.affinity import Affinity
from tokenzoo.kernels.gram import gram
from tokenzoo.scorers import Similarity
from tokenzoo.tokens import unit


@pytest.mark.parametrize("n", [1, 7, 8, 11, 12, 13, 40])
@pytest.mark.parametrize("exact", [True, False])
def test_blocks_make_the_product(n: int, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    features = unit(draws(n, 2, n, 9).float()) if exact else draws(n, 2, n, 9)
    whole = features @ features.mT
    monkeypatch.setattr("tokenzoo.kernels.gram.BLOCK", 4)
    found = gram(features)
    assert torch.equal(found, found.mT)
    if exact:
        assert torch.equal(found, whole)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)


def test_gradients_go_to_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenzoo.kernels.gram.BLOCK", 4)
    features = draws(0, 1, 9, 3).requires_grad_()
    assert torch.autograd.gradcheck(gram, features)


def test_scores_of_tokens_with_themselves_are_made_by_halves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []

    def spy(features: Tensor) -> Tensor:
        seen.append(features.shape)
        return gram(features)

    monkeypatch.setattr("tokenzoo.affinity.gram", spy)
    evidence = site(draws(1, 1, 9, 3)[0][None])
    pairs, pool = Similarity("x").score(evidence), pool_of(evidence)
    some = pool[:, 2:6]
    torch.testing.assert_close(pairs.at(some, some).dense(), pairs.dense()[:, 2:6, 2:6])
    assert seen == [(1, 4, 3), (1, 9, 3)]
    pairs.at(some, pool).dense()
    Affinity(evidence.x, evidence.x.clone()).dense()
    assert len(seen) == 2
