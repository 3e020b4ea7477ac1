"""Thin, PerWindow, WholeRows, Lattice, Medoids: against their sentences, one token at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokenzoo import Evidence
from tokenzoo.errors import BadArgumentError
from tokenzoo.matchers import Lattice, Medoids, PerWindow, Thin, WholeRows
from tokenzoo.scorers import FeatureNorm, NegativeSquaredDistance, Similarity

N, ROWS, COLUMNS = 35, 5, 7


def site(n: int = N, *, grid: tuple[int, int] | None = None, seed: int = 0, b: int = 2) -> Evidence:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(b, n, 4, generator=generator, dtype=torch.float64)
    return Evidence(x, mass=torch.ones(b, n), grid=grid)


def everything(b: int = 2, n: int = N) -> Tensor:
    return torch.arange(n).expand(b, n)


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


@pytest.mark.parametrize(
    ("k", "per_round"), [(1, 8), (5, 3), (20, 8), (34, 8), (16, 1), (0, 8), (35, 8)]
)
def test_thin_drops_the_most_similar_of_every_second(k: int, per_round: int) -> None:
    evidence = site()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    kept, rest = Thin(Similarity("x"), per_round).select(evidence, order.expand(2, N), k)
    for i, x in enumerate(evidence.x):
        left = order.tolist() if k else []
        while len(left) > k:
            even, odd = left[::2], left[1::2]
            alike = {a: max(cosine(x[a], x[b]) for b in odd) for a in even}
            even.sort(key=lambda a: -alike[a])
            left = even[min(per_round, len(left) - k, len(even)) :] + odd
        assert kept[i].tolist() == left
        assert rest[i].tolist() == [t for t in order.tolist() if t not in left]


def test_thin_drops_what_is_no_number_first() -> None:
    evidence = site()
    evidence.x[:, [0, 1, 3, 5, 7, 30]] = torch.nan
    for k in (29, 20, 3):
        kept, _ = Thin(Similarity("x")).select(evidence, everything(), k)
        assert bool(evidence.x[0, kept[0]].isfinite().all())


def window(token: int, size: int) -> tuple[int, int]:
    """Rows and columns that fill no window belong to the last one."""
    last = max(1, ROWS // size) - 1, max(1, COLUMNS // size) - 1
    return min(token // COLUMNS // size, last[0]), min(token % COLUMNS // size, last[1])


@pytest.mark.parametrize("size", [2, 3, 9])
@pytest.mark.parametrize("k", [1, 6, 8, 13, 35])
def test_windows_are_filled_evenly(k: int, size: int) -> None:
    evidence = site(grid=(ROWS, COLUMNS))
    kept, _ = PerWindow(FeatureNorm(), size).select(evidence, everything(), k)
    for i, scores in enumerate(FeatureNorm().score(evidence).tolist()):
        ranked = sorted(range(N), key=lambda t: -scores[t])
        seen: dict[tuple[int, int], int] = {}
        inside = {}
        for t in ranked:
            inside[t] = seen.get(window(t, size), 0)
            seen[window(t, size)] = inside[t] + 1
        wanted = sorted(ranked, key=lambda t: (inside[t], -scores[t]))[:k]
        assert kept[i].tolist() == wanted


@pytest.mark.parametrize("k", [1, 4, 6, 7, 20])
def test_windows_are_capped(k: int) -> None:
    evidence = site(grid=(ROWS, COLUMNS))
    kept, _ = PerWindow(FeatureNorm(), 2, "cap").select(evidence, everything(), k)
    cap = -(-k // 6)  # 2 x 3 windows
    for i, scores in enumerate(FeatureNorm().score(evidence).tolist()):
        wanted: list[int] = []
        for t in sorted(range(N), key=lambda t: -scores[t]):
            inside = sum(window(t, 2) == window(other, 2) for other in wanted)
            if inside < cap and len(wanted) < k:
                wanted.append(t)
        assert kept[i].tolist() == wanted


def test_whole_rows_and_the_best_of_the_next() -> None:
    evidence = site(grid=(ROWS, COLUMNS))
    scores = FeatureNorm().score(evidence)
    for k in (7, 14, 17):
        kept, _ = WholeRows(FeatureNorm()).select(evidence, everything(), k)
        for i in range(2):
            rows = scores[i].view(ROWS, COLUMNS).sum(1).argsort(descending=True).tolist()
            whole = {r * COLUMNS + c for r in rows[: k // 7] for c in range(COLUMNS)}
            assert whole <= set(kept[i].tolist())
            others = set(kept[i].tolist()) - whole
            row = range(rows[k // 7] * COLUMNS, (rows[k // 7] + 1) * COLUMNS)
            best = sorted(row, key=lambda t: -float(scores[i, t]))[: k - len(whole)]
            assert others == set(best)


def test_a_lattice_is_of_the_image_and_fills_up_from_the_pool() -> None:
    evidence = site()
    pool = torch.tensor([[30, 2, 17, 12, 7, 34, 1]]).expand(2, 7)
    # Every fifth from 2 on: 2, 7, 12, ... but never the last, 34.
    kept, rest = Lattice(5).select(evidence, pool, 5)
    assert kept[0].tolist() == [2, 7, 12, 17, 30]
    assert rest[0].tolist() == [34, 1]
    assert Lattice(5).select(evidence, pool, 2)[0][0].tolist() == [2, 7]
    assert Lattice(4).select(evidence, everything(), 9)[0][0].tolist() == [*range(2, 31, 4), 0]
    assert Lattice().select(evidence, everything(), 7)[0][0].tolist() == [2, 7, 12, 17, 22, 27, 32]


@pytest.mark.parametrize("match_reference", [False, True])
@pytest.mark.parametrize("k", [1, 4, 12])
def test_medoids_are_the_middles_of_their_clusters(k: int, match_reference: bool) -> None:
    evidence = site()
    scores = FeatureNorm().score(evidence)
    kept, _ = Medoids(NegativeSquaredDistance(), FeatureNorm(), 3, match_reference).select(
        evidence, everything(), k
    )
    for i, x in enumerate(evidence.x):
        far = torch.cdist(x, x)
        medoids = scores[i].argsort(descending=True)[:k].tolist()
        for _ in range(3):
            own = {t: min(range(k), key=lambda c: float(far[t, medoids[c]])) for t in range(N)}
            own |= {medoid: c for c, medoid in enumerate(medoids)}
            groups = [[t for t in range(N) if own[t] == c] for c in range(k)]
            medoids = [
                min(
                    group,
                    key=lambda t: float(
                        scores[i, t] * (far[t] if match_reference else far[t, group]).sum()
                    ),
                )
                for group in groups
            ]
        assert kept[i].tolist() == medoids
        assert len(set(medoids)) == k


def test_medoids_of_equal_tokens_are_different_tokens() -> None:
    evidence = Evidence(torch.ones(1, 6, 2), mass=torch.ones(1, 6))
    kept, rest = Medoids(NegativeSquaredDistance(), FeatureNorm()).select(
        evidence, everything(1, 6), 3
    )
    assert sorted([*kept[0].tolist(), *rest[0].tolist()]) == list(range(6))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Thin(Similarity("x"), 0), "per_round=0"),
        (lambda: Thin(FeatureNorm()), "pairs="),
        (lambda: PerWindow(FeatureNorm(), 0), "size=0"),
        (lambda: PerWindow(FeatureNorm(), fill="all"), "fill='all'"),
        (lambda: WholeRows(NegativeSquaredDistance()), "scorer="),
        (lambda: Lattice(0), "step=0"),
        (lambda: Medoids(NegativeSquaredDistance(), FeatureNorm(), -1), "rounds=-1"),
    ],
)
def test_options_that_cannot_work(make, named: str) -> None:
    with pytest.raises(BadArgumentError, match=named):
        make()
