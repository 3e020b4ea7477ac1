"""Quotas of runs, anchors with their neighbours, marginal relevance and elbows, one token at a time."""

from __future__ import annotations

import math

import pytest
import torch

from tests.matchers.sites import Given, draws, pool_of, scores, site
from tokenzoo import Evidence
from tokenzoo.matchers import Anchored, Drop, Elbow, MarginalRelevance, RunQuotas, SelectAssign
from tokenzoo.scorers import FeatureNorm, ReceivedAttention, Similarity

N, ROWS, COLUMNS = 35, 5, 7
LENGTH, COSINE = FeatureNorm(), Similarity("x")


def seen() -> Evidence:
    given = draws(2, N, seed=9).abs()
    return site(draws(2, N, 4), grid=(ROWS, COLUMNS), show={"received_attention": lambda: given})


# --- quotas


def cut(n: int, runs: int) -> list[range]:
    """n places in runs, the first ones one longer."""
    sizes = [n // runs + (i < n % runs) for i in range(runs)]
    return [range(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(runs)]


@pytest.mark.parametrize("runs", [1, 3, 8, 35, 99])
@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("k", [1, 7, 20, 34])
def test_runs_have_quotas_in_proportion_to_their_means(runs: int, power: float, k: int) -> None:
    evidence = seen()
    kept, rest = RunQuotas(LENGTH, runs, power).select(evidence, pool_of(evidence), k)
    for i, values in enumerate(LENGTH.score(evidence).tolist()):
        parts = cut(N, min(runs, N))
        weight = [(sum(values[t] for t in part) / len(part)) ** power for part in parts]
        quota = [math.floor(k * w / sum(weight) + 1e-9) for w in weight]
        for c in sorted(range(len(parts)), key=lambda c: -weight[c])[: k - sum(quota)]:
            quota[c] += 1
        chosen = [
            t
            for part, count in zip(parts, quota, strict=True)
            for t in sorted(part, key=lambda t: -values[t])[:count]
        ]
        others = sorted((t for t in range(N) if t not in chosen), key=lambda t: -values[t])
        ranked = sorted(chosen, key=lambda t: -values[t])
        assert kept[i].tolist() == (ranked + others)[:k]
        assert sorted(kept[i].tolist() + rest[i].tolist()) == list(range(N))


def test_what_a_full_run_cannot_take_goes_to_the_best_of_all_others() -> None:
    evidence = scores(9, 9, 0.1, 0.2, 0.3, 0.4)  # quotas of 4, 0 and 0 or 1
    kept, _ = RunQuotas(Given(), 3).select(evidence, pool_of(evidence), 4)
    assert kept.tolist() == [[0, 1, 5, 4]]


def test_a_run_without_numbers_has_none() -> None:
    evidence = scores(math.nan, math.nan, 1, 2, 1, 1)
    kept, _ = RunQuotas(Given(), 3).select(evidence, pool_of(evidence), 6)
    assert kept[0, -2:].tolist() == [0, 1]


# --- anchors


def near(token: int) -> set[int]:
    row, column = divmod(token, COLUMNS)
    cells = ((row, column - 1), (row, column + 1), (row - 1, column), (row + 1, column))
    return {r * COLUMNS + c for r, c in cells if 0 <= r < ROWS and 0 <= c < COLUMNS}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("k", [1, 5, 13, 25, 35])
def test_anchors_their_neighbours_and_the_best_of_the_others(share: float, k: int) -> None:
    evidence, anchors = seen(), ReceivedAttention()
    kept, rest = Anchored(anchors, LENGTH, share).select(evidence, pool_of(evidence), k)
    for i in range(2):
        high = anchors.score(evidence)[i].argsort(descending=True).tolist()
        ranked = LENGTH.score(evidence)[i].argsort(descending=True).tolist()
        first = set(high[: round(share * k / 5)])
        second = {t for anchor in first for t in near(anchor)} - first
        expected = sorted(ranked, key=lambda t: 0 if t in first else 1 if t in second else 2)
        assert kept[i].tolist() == expected[:k]
        assert sorted(kept[i].tolist() + rest[i].tolist()) == list(range(N))


def test_anchors_are_of_the_pool_and_neighbours_of_the_grid() -> None:
    """An anchor at the right edge: what comes after it in raster order is not next to it."""
    evidence = site(torch.zeros(1, N, 1), grid=(ROWS, COLUMNS))
    evidence.x[0, 13] = evidence.x[0, 0] = 5.0  # 0 is not in the pool
    pool = torch.tensor([[30, 13, 14, 12, 6, 20, 1]])
    kept, _ = Anchored(Given(), Given(), 1.0).select(evidence, pool, 5)
    assert kept.tolist() == [[13, 12, 6, 20, 30]]


# --- marginal relevance


@pytest.mark.parametrize("balance", [0.0, 0.3, 0.5, 1.0])
def test_each_is_important_and_unlike_those_before(balance: float) -> None:
    evidence = seen()
    part = MarginalRelevance(LENGTH.normalized(), COSINE, balance)
    kept, rest = part.select(evidence, pool_of(evidence), 20)
    for i, x in enumerate(evidence.x):
        length = x.norm(dim=-1)
        value = ((length - length.min()) / (length.max() - length.min())).tolist()
        alike = (x / length[:, None]) @ (x / length[:, None]).T
        chosen = [max(range(N), key=lambda t: value[t])]
        while len(chosen) < 20:
            gains = {
                t: balance * value[t] - (1 - balance) * float(alike[t, chosen].max())
                for t in range(N)
                if t not in chosen
            }
            chosen.append(max(gains, key=lambda t: gains[t]))
        assert kept[i].tolist() == chosen
        assert rest[i].tolist() == [t for t in range(N) if t not in chosen]


def test_what_is_no_number_is_last_and_like_nothing() -> None:
    evidence, part = seen(), MarginalRelevance(LENGTH.normalized(), COSINE)
    x = evidence.x[:, :12].clone()
    alone, _ = part.select(site(x), torch.arange(12).expand(2, 12), 12)
    broken = torch.cat([torch.full_like(x[:, :1], math.nan), x], 1)
    kept, _ = part.select(site(broken), torch.arange(13).expand(2, 13), 13)
    assert kept[:, :-1].tolist() == (alone + 1).tolist()
    assert kept[:, -1].tolist() == [0, 0]


# --- elbows


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ([9, 1, 1, 1, 1], 1),
        ([1, 9, 1, 8, 1, 1], 2),
        ([9, 8, 7, 2, 1, 0, 0, 0], 3),
        ([1, 2, 3, 4, 5], 5),  # a straight line
        ([5, 5, 5, 5, 0], 5),  # above the line
        ([3, 3, 3], 3),
        ([7], 1),
        ([9, math.nan, 1, 1, math.inf, 1, 1], 1),
        ([math.nan] * 3, 3),
    ],
)
def test_the_head_of_the_curve_stays(values: list[float], count: int) -> None:
    evidence, n = scores(*values), len(values)
    part = Elbow(Given())
    assert part.lengths(evidence, pool_of(evidence), n).tolist() == [count]
    kept, _ = part.select(evidence, pool_of(evidence), n)
    finite = [v if math.isfinite(v) else -math.inf for v in values]
    assert kept[0].tolist() == sorted(range(n), key=lambda t: -finite[t])
    assert part.lengths(evidence, pool_of(evidence), 1).tolist() == [1]


def test_each_image_has_its_own_count() -> None:
    evidence = site(torch.tensor([[9.0, 1, 1, 1, 1, 1], [9, 8, 8, 1, 1, 1]])[..., None])
    plan = SelectAssign(Elbow(Given()), Drop()).match(evidence, 5)
    assert plan.lengths is not None
    assert plan.lengths.tolist() == [1, 3]
    assert plan.keep.tolist() == [[0, -1, -1, -1, -1], [0, 1, 2, -1, -1]]
