"""Among and JoinFirst: a second choice in the first share of a pool, and the rest of that share."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenzoo import Evidence, Scorer, Selector
from tokenzoo.errors import BadArgumentError
from tokenzoo.matchers import (
    REST,
    Among,
    Drop,
    Fuse,
    GridCentres,
    JoinFirst,
    Nearest,
    Outliers,
    SelectAssign,
    Then,
    TopK,
)
from tokenzoo.scorers import DensityPeak, FeatureNorm, Similarity

B, N, C = 2, 20, 3
BEST = TopK(FeatureNorm(), rest="score", kept="position")


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def site(x: Tensor | None = None) -> Evidence:
    x = draws(B, N, C) if x is None else x
    return Evidence(x, mass=torch.ones(x.shape[:2]))


def pool(n: int = N) -> Tensor:
    return torch.arange(n).expand(B, n)


class Spy(Selector):
    """The last of its pool, and a note of what it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        self.seen.append((evidence.x, pool))
        cut = pool.shape[1] - k
        return pool[:, cut:], pool[:, :cut]


@pytest.mark.parametrize(
    ("share", "k", "seen"), [(0.3, 2, 7), (0.3, 9, 9), (0.0, 1, 1), (1.0, 2, 20)]
)
def test_it_sees_the_first_share_and_one_more(share: float, k: int, seen: int) -> None:
    spy = Spy()
    turned = pool().flip(1)
    kept, rest = Among(spy, share).select(site(), turned, k)
    ((x, own),) = spy.seen
    assert own.tolist() == [list(range(seen))] * B
    first = torch.arange(N - seen, N)  # in the order of the image
    assert torch.equal(x, draws(B, N, C)[:, first])
    assert kept.tolist() == [first[seen - k :].tolist()] * B
    wanted = [*first[: seen - k].tolist(), *turned[0, seen:].tolist()]
    assert rest.tolist() == [wanted] * B


@pytest.mark.parametrize("dominant", [0, 3, 8])
def test_centres_among_the_best_of_the_rest(dominant: int) -> None:
    """Norms choose, then peaks of density that know of nothing else."""
    peaks = TopK(DensityPeak(k=0.1))
    stay = Then((dominant, BEST), (REST, Among(peaks, 0.5)))
    evidence = site()
    kept, rest = stay.select(evidence, pool(), dominant + 2)
    for i in range(B):
        ranked = evidence.x[i].norm(dim=-1).argsort(descending=True).tolist()
        assert kept[i, :dominant].tolist() == sorted(ranked[:dominant])
        count = int(0.5 * (N - dominant)) + 1
        some = torch.tensor(sorted(ranked[dominant:][:count]))
        alone = site(evidence.x[i : i + 1, some].expand(B, -1, -1))
        score = DensityPeak(k=0.1).score(alone)[0]
        centres = some[score.argsort(descending=True)[:2]]
        assert kept[i, dominant:].tolist() == centres.tolist()
        left = [j for j in some.tolist() if j not in centres.tolist()]
        assert rest[i].tolist() == left + ranked[dominant + count :]


def test_the_rest_of_the_share_joins_and_the_others_go() -> None:
    join = JoinFirst(Nearest(Similarity("x"), group=-1), 0.5)
    stay = Then((4, BEST), (REST, Among(TopK(DensityPeak(k=0.1)), 0.5)))
    evidence = site()
    plan = SelectAssign(stay, join, order="selected").match(evidence, 6)
    plan.check()
    count = int(0.5 * 16) + 1
    cosine = torch.nn.functional.cosine_similarity
    for i in range(B):
        slots = plan.dst[i].tolist()
        ranked = evidence.x[i].norm(dim=-1).argsort(descending=True).tolist()
        centres = plan.keep[i, 4:].tolist()
        for j in ranked[4:][:count]:
            if j in centres:
                continue
            near = [float(cosine(evidence.x[i, j], evidence.x[i, c], dim=0)) for c in centres]
            assert slots[j] == 4 + near.index(max(near))
        assert all(slots[j] == -1 for j in ranked[4 + count :])


def test_of_nothing_left_nothing_joins() -> None:
    join = JoinFirst(Nearest(Similarity("x")), 0.3)
    kept = pool()
    assert join.assign(site(), kept, kept[:, :0], (N,)).shape == (B, 0)
    # More chosen than the share has: none of the others is part of it.
    assert join.assign(site(), kept[:, :15], kept[:, 15:], (15,)).tolist() == [[-1] * 5] * B


def test_top_k_in_the_order_of_the_image() -> None:
    evidence = site()
    by_score, rest = TopK(FeatureNorm(), rest="score").select(evidence, pool(), 6)
    kept, left = BEST.select(evidence, pool(), 6)
    assert torch.equal(kept, by_score.sort().values)
    assert not torch.equal(kept, by_score)
    assert torch.equal(left, rest)
    kept, left = TopK(FeatureNorm(), kept="position").select(evidence, pool(), 6)
    assert torch.equal(kept, by_score.sort().values)
    assert torch.equal(left, rest.sort().values)


def test_a_share_as_neighbours() -> None:
    """0.1 of 20 tokens, and one more, are 3."""
    assert torch.equal(DensityPeak(k=0.1).score(site()), DensityPeak(k=3).score(site()))
    assert not torch.equal(DensityPeak(k=0.1).score(site()), DensityPeak(k=2).score(site()))


def test_with_itself_alone_as_neighbour_all_are_equally_dense() -> None:
    """Then the lower index is the denser one, whatever rounding makes of a distance to oneself."""
    x = 1e3 * draws(B, N, C).float()
    score = DensityPeak(k=1).score(site(x))
    distance = torch.cdist(x.double(), x.double()) / C**0.5
    wanted = [
        [float(row[j, :j].min()) if j else float(row.max()) for j in range(N)] for row in distance
    ]
    torch.testing.assert_close(score.double(), torch.tensor(wanted).double(), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Among(FeatureNorm()), "stay=FeatureNorm"),
        (lambda: Among(BEST, 1.5), "share=1.5; it must be a fraction in [0, 1]"),
        (lambda: Among(GridCentres()), "grid, and a part of an image has none"),
        (lambda: Among(Outliers(FeatureNorm())), "its count comes from the data"),
        (lambda: JoinFirst(BEST), "join=TopK"),
        (lambda: JoinFirst(Drop(), True), "share=True"),
        (lambda: JoinFirst(Fuse()), "makes new tokens"),
        (
            lambda: TopK(FeatureNorm(), kept="image"),
            "kept='image'; it must be 'position' or 'score'",
        ),
        (lambda: DensityPeak(k=1.5), "k=1.5; it must be a fraction in [0, 1]"),
        (lambda: DensityPeak(k=0), "k=0; it must be an int >= 1"),
    ],
)
def test_bad_arguments(make: Any, named: str) -> None:
    with pytest.raises(BadArgumentError, match=re.escape(named)):
        make()


def test_needs_are_those_of_what_is_inside() -> None:
    class Asks(Scorer):
        needs = frozenset({"frames"})

        def score(self, evidence: Evidence) -> Tensor:
            raise AssertionError(evidence)

    with pytest.raises(BadArgumentError, match="frames"):
        Among(TopK(Asks()))
