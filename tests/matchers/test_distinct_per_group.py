"""Groups by principal components against a singular value decomposition; suppression by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.compiling import clean_compiler as clean_compiler
from tests.matchers.sites import Given, GivenPairs, draws, pool_of, site
from tests.watching import Watch
from tokenzoo.kernels.suppression import suppressed
from tokenzoo.matchers import DistinctPerGroup
from tokenzoo.matchers.distinct_per_group import principal
from tokenzoo.scorers import FeatureNorm, Similarity

LENGTH, COSINE = FeatureNorm(), Similarity("x")


def walked(near: Tensor) -> list[list[bool]]:
    found: list[list[bool]] = []
    for table in near.tolist():
        gone: list[bool] = []
        for j, row in enumerate(table):
            gone.append(any(row[i] and not gone[i] for i in range(j)))
        found.append(gone)
    return found


def test_a_suppressed_token_suppresses_nobody(clean_compiler: None) -> None:
    near = draws(4, 13, 13, seed=3) > 0.9
    near = near | near.mT
    assert suppressed(near).tolist() == walked(near)
    with Watch(strict=True):
        suppressed(near)
    compiled = torch.compile(suppressed, backend="eager", fullgraph=True)
    assert compiled(near).tolist() == walked(near)


def planted(n: int, patterns: int, noise: float) -> tuple[Tensor, Tensor]:
    """Tokens of a few patterns of channels, of clearly different strength, and which is whose."""
    which = torch.randperm(n, generator=torch.Generator().manual_seed(1)) % patterns
    shapes = draws(patterns, 32, seed=2).sign()
    strength = 2.0 ** -torch.arange(patterns).double()
    x = shapes[which] * strength[which, None] + noise * draws(n, 32, seed=3)
    return x[None], which


@pytest.mark.parametrize("patterns", [1, 2, 4])
def test_groups_are_those_of_the_singular_vectors(patterns: int) -> None:
    x, which = planted(40, patterns, 0.02)
    squashed = torch.sigmoid(x[0])
    squashed = squashed - squashed.mean(-1, keepdim=True)
    weights = torch.linalg.svd(squashed, full_matrices=False).U[:, :patterns].abs()
    found = principal(x, patterns)[0]
    assert found.tolist() == weights.argmax(-1).tolist()
    assert len(set(zip(found.tolist(), which.tolist(), strict=True))) == patterns


def test_no_component_of_rounding_errors_has_a_token() -> None:
    x = draws(1, 2, 6).repeat_interleave(5, 1)  # of rank two
    assert set(principal(x, 6)[0].tolist()) <= {0, 1}
    assert principal(torch.zeros(1, 4, 3), 3).tolist() == [[0] * 4]
    assert principal(torch.full((1, 4, 3), math.nan), 3).tolist() == [[0] * 4]


@pytest.mark.parametrize("k", [1, 4, 9, 16, 30])
@pytest.mark.parametrize(("groups", "threshold"), [(0.25, 0.1), (0.5, 0.02), (0.0, 1.0)])
def test_distinct_tokens_of_every_group(k: int, groups: float, threshold: float) -> None:
    x, _ = planted(30, 4, 0.3)
    evidence = site(x)
    part = DistinctPerGroup(LENGTH, COSINE, groups, threshold)
    kept, rest = part.select(evidence, pool_of(evidence), k)
    score = x[0].norm(dim=-1)
    unit = x[0] / score[:, None]
    alike = unit @ unit.T
    limit = threshold * k * float((alike.sum() - 30) / (30 * 29))
    group = principal(x, max(1, math.floor(groups * k + 1e-9)))[0].tolist()
    ranked = score.argsort(descending=True).tolist()
    taken: list[int] = []
    for t in ranked:
        if not any(group[i] == group[t] and float(alike[i, t]) > limit for i in taken):
            taken.append(t)
    keys: dict[int, tuple[int, float, int]] = {}
    for g in set(group):
        inside = [t for t in ranked if group[t] == g]
        inside.sort(key=lambda t: t not in taken)
        count = sum(t in taken for t in inside)
        for turn, t in enumerate(inside):
            share = (turn - 0.5) / count if t in taken else 100.0 + ranked.index(t)
            keys[t] = (int(turn > 0), share, t)
    assert kept[0].tolist() == sorted(keys, key=lambda t: keys[t])[:k]
    assert sorted(kept[0].tolist() + rest[0].tolist()) == list(range(30))


def test_what_is_no_number_is_last_and_near_nobody() -> None:
    x, _ = planted(12, 2, 0.3)
    part = DistinctPerGroup(LENGTH, COSINE, 0.25, 0.05)
    broken = torch.cat([x[:, :5], torch.full_like(x[:, :1], math.nan), x[:, 5:]], 1)
    kept, _ = part.select(site(broken), torch.arange(13)[None], 13)
    assert kept[0, -1] == 5


def test_equal_scores_keep_the_first() -> None:
    evidence = site(torch.eye(6)[None].double())
    kept, _ = DistinctPerGroup(Given(), GivenPairs(), 0.0).select(evidence, pool_of(evidence), 3)
    assert kept.tolist() == [[0, 1, 2]]
