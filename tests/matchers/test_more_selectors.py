"""Selectors against their sentences, one token at a time; and a matcher of two."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.matchers.sites import draws, pool_of, site
from tokenzoo import Evidence, Selector
from tokenzoo.errors import BadArgumentError
from tokenzoo.matchers import (
    Among,
    Bipartite,
    ByDepth,
    Drop,
    JoinFirst,
    Lattice,
    Medoids,
    Nearest,
    PerWindow,
    SelectAssign,
    Thin,
    TopK,
    WholeRows,
)
from tokenzoo.scorers import FeatureNorm, NegativeSquaredDistance, Similarity

N, ROWS, COLUMNS = 35, 5, 7
LENGTH, COSINE = FeatureNorm(), Similarity("x")


def seen() -> Evidence:
    return site(draws(2, N, 4), grid=(ROWS, COLUMNS))


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


@pytest.mark.parametrize(("k", "per_round"), [(5, 3), (20, 8), (34, 8), (16, 1), (0, 8), (35, 8)])
def test_thin_drops_the_most_similar_of_every_second(k: int, per_round: int) -> None:
    evidence = seen()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    kept, rest = Thin(COSINE, per_round).select(evidence, order.expand(2, N), k)
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
    evidence = seen()
    evidence.x[:, [0, 1, 3, 5, 7, 30]] = torch.nan
    for k in (29, 20, 3):
        kept, _ = Thin(COSINE).select(evidence, pool_of(evidence), k)
        assert bool(evidence.x[0, kept[0]].isfinite().all())


def window(token: int, size: int) -> tuple[int, int]:
    """Rows and columns that fill no window belong to the last one."""
    last = max(1, ROWS // size) - 1, max(1, COLUMNS // size) - 1
    return min(token // COLUMNS // size, last[0]), min(token % COLUMNS // size, last[1])


@pytest.mark.parametrize(("size", "windows"), [(2, 6), (3, 2), (9, 1)])
@pytest.mark.parametrize("k", [1, 6, 8, 13, 35])
def test_windows_are_filled_evenly_or_up_to_a_cap(k: int, size: int, windows: int) -> None:
    evidence = seen()
    even, cap = (
        PerWindow(LENGTH, size, fill).select(evidence, pool_of(evidence), k)[0].tolist()
        for fill in ("even", "cap")
    )
    for i, scores in enumerate(LENGTH.score(evidence).tolist()):
        ranked = sorted(range(N), key=lambda t: -scores[t])
        inside: dict[int, int] = {}  # how many of its window are better
        for place, t in enumerate(ranked):
            inside[t] = sum(window(other, size) == window(t, size) for other in ranked[:place])
        assert even[i] == sorted(ranked, key=lambda t: inside[t])[:k]
        assert cap[i] == sorted(ranked, key=lambda t: inside[t] >= -(-k // windows))[:k]


@pytest.mark.parametrize("k", [7, 14, 17])
def test_whole_rows_and_the_best_of_the_next(k: int) -> None:
    evidence = seen()
    kept, _ = WholeRows(LENGTH).select(evidence, pool_of(evidence), k)
    for i, scores in enumerate(LENGTH.score(evidence)):
        rows = scores.view(ROWS, COLUMNS).sum(1).argsort(descending=True).tolist()
        by_row = sorted(range(N), key=lambda t: (rows.index(t // COLUMNS), -float(scores[t])))
        assert kept[i].tolist() == by_row[:k]


@pytest.mark.parametrize(
    ("step", "pool", "k", "kept"),
    [
        # Every fifth from 2 on: 2, 7, 12, ... but never the last, 34; then the others of the pool.
        (5, [30, 2, 17, 12, 7, 34, 1], 5, [2, 7, 12, 17, 30]),
        (5, [30, 2, 17, 12, 7, 34, 1], 2, [2, 7]),
        (4, [*range(N)], 9, [*range(2, 31, 4), 0]),
        (None, [*range(N)], 7, [2, 7, 12, 17, 22, 27, 32]),
    ],
)
def test_a_lattice_is_of_the_image(
    step: int | None, pool: list[int], k: int, kept: list[int]
) -> None:
    found, rest = Lattice(step).select(seen(), torch.tensor([pool, pool]), k)
    assert found.tolist() == [kept] * 2
    assert rest.tolist() == [[t for t in pool if t not in kept]] * 2


@pytest.mark.parametrize("match_reference", [False, True])
@pytest.mark.parametrize("k", [1, 4, 12])
def test_medoids_are_the_middles_of_their_clusters(k: int, match_reference: bool) -> None:
    evidence = seen()
    part = Medoids(NegativeSquaredDistance(), LENGTH, 3, match_reference)
    kept, _ = part.select(evidence, pool_of(evidence), k)
    for i, x in enumerate(evidence.x):
        far, scores = torch.cdist(x, x), LENGTH.score(evidence)[i]
        medoids = scores.argsort(descending=True)[:k].tolist()
        for _ in range(3):
            own = {t: min(range(k), key=lambda c: float(far[t, medoids[c]])) for t in range(N)}
            own |= {medoid: c for c, medoid in enumerate(medoids)}
            for c in range(k):
                group = [t for t in range(N) if own[t] == c]
                cost = scores * (far if match_reference else far[:, group]).sum(1)
                medoids[c] = min(group, key=lambda t: float(cost[t]))
        assert kept[i].tolist() == medoids


class Spy(Selector):
    """The last of its pool, and a note of what it saw."""

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        self.seen = evidence.x, pool
        cut = pool.shape[1] - k
        return pool[:, cut:], pool[:, :cut]


@pytest.mark.parametrize(
    ("share", "k", "seen_of"), [(0.3, 2, 11), (0.3, 12, 12), (0.0, 1, 1), (1.0, 2, N)]
)
def test_among_shows_the_first_share_and_one_more(share: float, k: int, seen_of: int) -> None:
    spy, evidence = Spy(), seen()
    turned = pool_of(evidence).flip(1)
    kept, rest = Among(spy, share).select(evidence, turned, k)
    x, own = spy.seen
    assert own.tolist() == [list(range(seen_of))] * 2
    first = torch.arange(N - seen_of, N)  # in the order of the image
    assert torch.equal(x, evidence.x[:, first])
    assert kept.tolist() == [first[seen_of - k :].tolist()] * 2
    assert rest.tolist() == [first[: seen_of - k].tolist() + turned[0, seen_of:].tolist()] * 2


@pytest.mark.parametrize(("chosen", "joining"), [(3, 8), (15, 0), (N, 0)])
def test_the_rest_of_the_share_joins_and_the_others_go(chosen: int, joining: int) -> None:
    """0.3 of 35 tokens and one more are 11, with those that are chosen."""
    evidence, join = seen(), Nearest(COSINE)
    kept, rest = pool_of(evidence).split([chosen, N - chosen], 1)
    found = JoinFirst(join, 0.3).assign(evidence, kept, rest, (chosen,))
    assert torch.equal(
        found[:, :joining], join.assign(evidence, kept, rest, (chosen,))[:, :joining]
    )
    assert bool((found[:, joining:] == -1).all())
    assert found.shape == rest.shape


def test_a_depth_decides() -> None:
    first, last = Bipartite(COSINE), SelectAssign(TopK(LENGTH), Drop())
    match, x = ByDepth(first, last, 0.5), draws(2, 11, 4)
    assert match.needs == {"depth"}
    assert match.min_tokens(11) == 6
    for depth, part in ((0.0, first), (0.49, first), (0.5, last), (0.9, last)):
        evidence = site(x, depth=depth)
        found, wanted = match.match(evidence, 8), part.match(evidence, 8)
        assert torch.equal(found.keep, wanted.keep)
        assert torch.equal(found.dst, wanted.dst)
        with pytest.raises(BadArgumentError, match=r"keep=3 of 11 tokens.* 6: "):
            match.match(evidence, 3)  # the last could, the first cannot


def test_pitome_is_another_at_another_depth() -> None:
    zoo, x = tokenzoo.build("pitome", keep=8), draws(2, 11, 4)
    early, late = (zoo.reduce(x, keys=x, depth=depth).plan for depth in (0, 0.9))
    assert not torch.equal(early.dst, late.dst)
    with pytest.raises(BadArgumentError, match="depth=2"):
        zoo.reduce(x, keys=x, depth=2)
