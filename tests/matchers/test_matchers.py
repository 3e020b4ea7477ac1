"""Matchers and their parts: counts, orders, groups, cells, and the formulas of choices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenzoo import Affinity, Evidence, PairScorer, Scorer
from tokenzoo.errors import BadArgumentError
from tokenzoo.matchers import (
    REST,
    Alternate,
    Bipartite,
    Drop,
    Every,
    GreedyDPP,
    GridCentres,
    MaxMin,
    Nearest,
    Parity,
    Protect,
    SameCell,
    SelectAssign,
    Strided,
    Then,
    TopK,
)
from tokenzoo.matchers.grid import bands, cell_of, centres
from tokenzoo.scorers import FeatureNorm, Random, Similarity
from tokenzoo.testing.strategies import Example, examples
from tokenzoo.token_map import take

CPU = torch.device("cpu")
cosine, length = Similarity("x"), FeatureNorm()


@dataclass(frozen=True)
class Given(Scorer):
    """The first channel is the score."""

    def score(self, evidence: Evidence) -> torch.Tensor:
        return evidence.x[..., 0]


@dataclass(frozen=True)
class GivenPairs(PairScorer):
    """x is the table of the pair scores, `[b, n, n]`."""

    def score(self, evidence: Evidence) -> Affinity:
        n = evidence.x.shape[1]
        return Affinity(evidence.x, torch.eye(n, dtype=evidence.x.dtype).expand_as(evidence.x))


def evidence_of(x: torch.Tensor, **options: object) -> Evidence:
    return Evidence(x, mass=torch.ones(x.shape[:2]), **options)  # pyright: ignore[reportArgumentType]


def scores(*values: float) -> Evidence:
    """Tokens of one image with these scores."""
    return evidence_of(torch.tensor(values, dtype=torch.float32)[None, :, None])


def pool_of(evidence: Evidence) -> torch.Tensor:
    b, n = evidence.x.shape[:2]
    return torch.arange(n).expand(b, n)


# ------------------------------------------------------------------------------------ splits


@pytest.mark.parametrize("n", range(1, 12))
def test_alternate_can_always_halve_what_is_free(n: int) -> None:
    free = torch.arange(n)[None] * 3 + 1  # whatever the indices are
    sources, targets = Alternate().sides(free, 1)
    assert torch.equal(sources, free[:, ::2])
    assert torch.equal(targets, free[:, 1::2])
    assert Alternate().limit(n) == n // 2 <= min(sources.shape[1], targets.shape[1] or n // 2)


@pytest.mark.parametrize("n", [2, 7, 8])
def test_alternate_with_the_other_half_proposing(n: int) -> None:
    """EvoPrune's a and b as its text has them, with indices from 1: those that are even propose."""
    free = torch.arange(n)[None]
    sources, targets = Alternate("even").sides(free, 0)
    counted_from_1 = free + 1
    assert torch.equal(sources, free[counted_from_1 % 2 == 0][None])
    assert torch.equal(targets, free[counted_from_1 % 2 == 1][None])
    assert Alternate("even").limit(n) <= sources.shape[1]


@pytest.mark.parametrize(("n", "prefix"), list(product(range(1, 9), range(3))))
def test_parity_counts_the_prefix(n: int, prefix: int) -> None:
    sources, targets = Parity().sides(torch.arange(n)[None], prefix)
    whole = torch.arange(prefix, prefix + n)
    assert torch.equal(sources[0] + prefix, whole[whole % 2 == 0])
    assert torch.equal(targets[0] + prefix, whole[whole % 2 == 1])
    assert Parity().limit(n) == n // 2 <= sources.shape[1]


@pytest.mark.parametrize(("n", "k"), list(product(range(1, 14), range(2, 6))))
def test_every_kth_receives(n: int, k: int) -> None:
    sources, targets = Every(k).sides(torch.arange(n)[None], 0)
    assert targets[0].tolist() == list(range(k - 1, n, k))
    assert sorted([*sources[0].tolist(), *targets[0].tolist()]) == list(range(n))
    assert sources[0].tolist() == sorted(sources[0].tolist())
    assert Every(k).limit(n) == (sources.shape[1] if targets.shape[1] else 0)


# ----------------------------------------------------------------------------------- protect


@pytest.mark.parametrize(
    ("tokens", "merges", "share", "held"),
    [
        *[(100, 10, 0.25, 25), (100, 37, 0.25, 25), (100, 38, 0.25, 24), (100, 40, 0.25, 20)],
        *[(100, 50, 0.25, 0), (101, 50, 0.25, 1), (100, 51, 0.25, 0), (100, 90, 0.25, 0)],
        *[(10, 0, 0.25, 2), (10, 0, 1.0, 10), (10, 3, 1.0, 4), (10, 0, 0.0, 0), (3, 1, 0.5, 1)],
        *[(1, 0, 1.0, 1), (1, 0, 0.5, 0)],
        # A share of 0.29 of 100 is 29, although 0.29 * 100 is 28.999999999999996 in floats.
        *[(100, 0, 0.29, 29), (100, 0, 0.57, 57), (50, 0, 0.58, 29)],
    ],
)
def test_protect_counts(tokens: int, merges: int, share: float, held: int) -> None:
    assert Protect(length, share).count(tokens, merges) == held


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_what_is_held_leaves_room_for_every_merge(share: float) -> None:
    for tokens in range(1, 40):
        for merges in range(tokens):
            held = Protect(length, share).count(tokens, merges)
            assert 0 <= held <= tokens * share
            assert tokens - held >= min(2 * merges, tokens)


def test_protect_holds_the_highest_and_partitions() -> None:
    evidence = scores(3, 9, 1, 9, 5, 7, 2, 0)
    held, free = Protect(Given(), 0.5).partition(evidence, 1)
    assert held.tolist() == [[1, 3, 4, 5]]
    assert free.tolist() == [[0, 2, 6, 7]]
    held, free = Protect(Given(), 0.5).partition(evidence, 3)  # 8 - 2 * 3 = 2
    assert held.tolist() == [[1, 3]]
    held, free = Protect(Given(), 0.5).partition(evidence, 4)
    assert held.shape == (1, 0)
    assert free.tolist() == [list(range(8))]


def test_protect_breaks_ties_to_the_lower_index_and_never_holds_a_nan_first() -> None:
    held, _ = Protect(Given(), 0.5).partition(scores(1, 1, 1, 1), 0)
    assert held.tolist() == [[0, 1]]
    held, _ = Protect(Given(), 0.5).partition(scores(torch.nan, 1, torch.inf, 0), 0)
    assert held.tolist() == [[1, 3]]


def test_sticky_holds_first_what_was_held_before() -> None:
    x = torch.tensor([3.0, 9, 1, 8, 5, 7, 2, 0])[None, :, None]
    before = torch.tensor([[False, False, True, False, False, True, False, True]])
    evidence = evidence_of(x, held=before)
    held, free = Protect(Given(), 0.5, sticky=True).partition(evidence, 0)
    assert held.tolist() == [[1, 2, 5, 7]]  # 5, 2, 7 were held; then the best of the others
    assert free.tolist() == [[0, 3, 4, 6]]
    held, _ = Protect(Given(), 0.5, sticky=True).partition(evidence, 3)
    assert held.tolist() == [[2, 5]]  # only room for the two best of them
    held, _ = Protect(Given(), 0.5, sticky=False).partition(evidence, 0)
    assert held.tolist() == [[1, 3, 4, 5]]


# --------------------------------------------------------------------------------- bipartite


def test_the_best_proposals_merge() -> None:
    """Tokens 0, 2, 4 propose to 1, 3, 5; the table says how much they want to."""
    table = torch.zeros(1, 6, 6)
    table[0, 0, 1], table[0, 0, 3] = 0.1, 0.9
    table[0, 2, 5], table[0, 2, 0] = 0.8, 5.0  # 0 is no target
    table[0, 4, 1] = 0.3
    evidence = evidence_of(table)
    plan = Bipartite(GivenPairs()).match(evidence, 4)
    assert plan.keep.tolist() == [[1, 3, 4, 5]]
    assert plan.dst.tolist() == [[1, 0, 3, 1, 2, 3]]
    assert Bipartite(GivenPairs()).match(evidence, 3).keep.tolist() == [[1, 3, 5]]
    assert Bipartite(GivenPairs()).match(evidence, 6).keep.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert Bipartite(GivenPairs()).min_tokens(6) == 3


def test_tome_order_is_proposers_then_receivers() -> None:
    table = torch.zeros(1, 6, 6)
    for source, target, score in ((0, 1, 0.1), (2, 3, 0.9), (4, 5, 0.5)):
        table[0, source, target] = score
    match = Bipartite(GivenPairs(), split=Parity(), order="tome")
    # Without a prefix the proposers that stay come in descending order of their scores ...
    assert match.match(evidence_of(table), 5).keep.tolist() == [[4, 0, 1, 3, 5]]
    # ... and with one by position, where the sides change places.
    table = table.mT.contiguous()
    plan = match.match(evidence_of(table, prefix=1), 5)
    assert plan.keep.tolist() == [[1, 5, 0, 2, 4]]
    assert plan.dst.tolist() == [[2, 0, 3, 3, 4, 1]]


@given(examples(max_tokens=14), st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=60)
def test_bipartite_holds_merges_and_orders(example: Example, share: float) -> None:
    evidence = example.evidence()
    b, n = evidence.x.shape[:2]
    match = Bipartite(cosine, protect=Protect(length, share))
    for keep in range(match.min_tokens(n), n + 1):
        plan = match.match(evidence, keep)
        plan.check()
        assert plan.kept == keep
        assert bool((plan.dst >= 0).all())
        assert bool((plan.keep.diff(dim=-1) > 0).all())  # in the order of positions
        if keep == n:
            continue
        assert plan.held is not None
        held, free = match.protect.partition(evidence, n - keep) if match.protect else ([], [])
        rank = torch.stack([row.sort().values for row in held]) if len(held[0]) else held
        for i in range(b):
            assert plan.keep[i, plan.held[i]].tolist() == rank[i].tolist()
        # Whoever leaves is a source, and joins its best target.
        sources, targets = Alternate().sides(free, example.prefix)
        score, best = cosine.score(evidence).at(sources, targets).best()
        home = take(plan.keep, take(plan.dst, sources))
        left = home != sources
        assert int(left.sum()) == b * (n - keep)
        assert torch.equal(home[left], take(targets, best)[left])
        lowest = score.masked_fill(~left, torch.inf).amin(-1)
        highest = score.masked_fill(left, -torch.inf).amax(-1)
        assert bool((lowest.float() >= highest.float()).all())  # as they are compared


def test_protect_and_parity_do_not_go_together() -> None:
    for options in ({"split": Parity()}, {"order": "tome"}):
        with pytest.raises(BadArgumentError) as caught:
            Bipartite(cosine, protect=Protect(length), **options)
        assert "protect= needs split=Alternate() and order='position'" in str(caught.value)


def test_a_matcher_that_protects_nothing_says_nothing() -> None:
    assert Bipartite(cosine).match(Example.drawn().evidence(), 9).held is None


# --------------------------------------------------------------------------------- selectors


def test_top_k() -> None:
    evidence = scores(3, 9, 1, 9, torch.nan, 7)
    kept, rest = TopK(Given()).select(evidence, pool_of(evidence), 3)
    assert kept.tolist() == [[1, 3, 5]]  # the highest first, ties to the lower index
    assert rest.tolist() == [[0, 2, 4]]
    kept, rest = TopK(Given(), rest="score").select(evidence, pool_of(evidence), 1)
    assert kept.tolist() == [[1]]
    assert rest.tolist() == [[3, 5, 0, 2, 4]]
    pool = torch.tensor([[5, 4, 3, 2]])
    kept, rest = TopK(Given()).select(evidence, pool, 1)
    assert kept.tolist() == [[3]]
    assert rest.tolist() == [[5, 4, 2]]  # in the order of the pool


@pytest.mark.parametrize(
    ("spacing", "p", "k", "kept"),
    [
        *[("even", 10, 3, [0, 3, 6]), ("even", 10, 4, [0, 2, 5, 7]), ("even", 5, 5, [*range(5)])],
        *[
            ("floor", 10, 3, [0, 3, 6]),
            ("floor", 10, 4, [0, 2, 4, 6]),
            ("floor", 5, 5, [*range(5)]),
        ],
        *[("even", 7, 1, [0]), ("floor", 7, 1, [0]), ("even", 7, 0, []), ("floor", 7, 0, [])],
    ],
)
def test_strided(spacing: str, p: int, k: int, kept: list[int]) -> None:
    evidence = scores(*range(p))
    chosen, rest = Strided(spacing).select(evidence, pool_of(evidence), k)  # pyright: ignore[reportArgumentType]
    assert chosen.tolist() == [kept]
    assert rest.tolist() == [[i for i in range(p) if i not in kept]]


def test_strided_goes_by_the_order_of_the_pool() -> None:
    evidence = scores(*range(6))
    pool = torch.tensor([[5, 3, 1, 0, 2, 4]])
    assert Strided().select(evidence, pool, 3)[0].tolist() == [[5, 1, 2]]


def test_then_takes_group_after_group() -> None:
    evidence = scores(0, 1, 2, 3, 4, 5, 6, 7)
    then = Then((0.5, TopK(Given(), rest="score")), (1, Strided()), (REST, TopK(Given())))
    assert then.groups(4) == (2, 1, 1)
    kept, rest = then.select(evidence, pool_of(evidence), 4)
    assert kept.tolist() == [[7, 6, 5, 4]]
    assert sorted(rest[0].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("shares", "k", "groups"),
    [
        *[((0.5,), 5, (2, 3)), ((0.5,), 1, (0, 1)), ((1.0,), 4, (4, 0)), ((0.0,), 4, (0, 4))],
        *[((3,), 5, (3, 2)), ((9,), 5, (5, 0)), ((0,), 5, (0, 5))],
        *[((0.5, 2), 9, (4, 2, 3)), ((0.5, 9), 9, (4, 5, 0)), ((0.75, 0.75), 8, (6, 2, 0))],
        *[((27 / 32,), 64, (54, 10)), ((0.29,), 100, (29, 71)), ((0.57,), 100, (57, 43))],
    ],
)
def test_then_groups_add_up(shares: tuple[float, ...], k: int, groups: tuple[int, ...]) -> None:
    then = Then(*((share, Strided()) for share in shares), (REST, Strided()))
    assert then.groups(k) == groups
    assert sum(groups) == k


def test_then_is_shown_as_it_is_written() -> None:
    then = Then((0.5, Strided()), (REST, TopK(Random(3))))
    assert eval(repr(then), {**globals(), "rest": REST}) == then


def max_min_by_hand(distance: torch.Tensor, k: int) -> list[int]:
    """DivPrune, in plain loops."""
    n = len(distance)
    nearest = [min(distance[i][j] for j in range(n) if j != i) if n > 1 else 0.0 for i in range(n)]
    chosen = [max(range(n), key=lambda i: (nearest[i], -i))]
    while len(chosen) < k:
        left = [i for i in range(n) if i not in chosen]
        chosen.append(max(left, key=lambda i: (min(distance[i][j] for j in chosen), -i)))
    return chosen


@given(examples(max_tokens=10))
@settings(max_examples=25)
def test_max_min_is_the_greedy_choice(example: Example) -> None:
    evidence = example.double().evidence()
    n = evidence.x.shape[1]
    kept, rest = MaxMin(cosine).select(evidence, pool_of(evidence), n)
    distance = (1 - cosine.score(evidence).dense()).tolist()
    for i in range(example.images):
        expected = max_min_by_hand(distance[i], n)
        # Distances that rounding tells apart are equal: compare what the choice is worth.
        for step in range(1, n):
            worth = [
                max(
                    min(distance[i][t][c] for c in order[:step])
                    for t in range(n)
                    if t not in order[:step]
                )
                for order in (kept[i].tolist(), expected)
            ]
            picked = min(distance[i][kept[i, step]][c] for c in kept[i, :step].tolist())
            assert picked == pytest.approx(worth[0], abs=1e-7)
    assert rest.shape == (example.images, 0)
    few, others = MaxMin(cosine).select(evidence, pool_of(evidence), min(3, n))
    assert torch.equal(few, kept[:, : min(3, n)])  # for fewer, the first of them
    assert others.shape[1] == n - min(3, n)


def test_max_min_does_not_see_a_nan() -> None:
    """With a NaN among them, the others are chosen as without it."""
    example = Example.drawn(images=2, grid=(3, 4), prefix=0)
    others = torch.tensor([[*range(3), *range(4, 12)]] * 2)
    evidence = example.evidence()
    clean, _ = MaxMin(cosine).select(evidence, others, 5)
    bad = example.poisoned([3]).evidence()
    kept, _ = MaxMin(cosine).select(bad, pool_of(bad), 5)
    assert torch.equal(kept, clean)
    last, _ = MaxMin(cosine).select(bad, pool_of(bad), 12)
    assert last[:, -1].tolist() == [3, 3]


def test_greedy_dpp_adds_the_largest_determinant() -> None:
    """Chen, Zhang and Zhou's fast greedy choice is the greedy choice."""
    example = Example.drawn(images=2, grid=(3, 3), prefix=0, channels=12)
    evidence = example.evidence()
    select = GreedyDPP(cosine, length)
    kept, _ = select.select(evidence, pool_of(evidence), 6)
    weight = length.score(evidence)
    kernel = weight[:, :, None] * cosine.score(evidence).dense() * weight[:, None]
    for i in range(2):
        chosen: list[int] = []
        for pick in kept[i].tolist():
            gains = {
                t: kernel[i][[*chosen, t]][:, [*chosen, t]].det().item()
                for t in range(9)
                if t not in chosen
            }
            assert max(gains, key=lambda t: gains[t]) == pick
            chosen.append(pick)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_greedy_dpp_does_not_see_a_nan_even_beyond_the_rank(value: float) -> None:
    """3 channels: from the fourth token on all gains are rounding errors, some of them negative."""
    example = Example.drawn(images=2, grid=(3, 4), prefix=0, channels=3).poisoned([3], value)
    evidence = example.evidence()
    kept, rest = GreedyDPP(cosine, length).select(evidence, pool_of(evidence), 11)
    assert rest.tolist() == [[3], [3]]
    assert all(len(set(row)) == 11 for row in kept.tolist())


@pytest.mark.parametrize(
    "selector",
    [
        TopK(length),
        TopK(length, rest="score"),
        Strided(),
        Strided("floor"),
        MaxMin(cosine),
        GreedyDPP(cosine, length),
        Then((0.5, TopK(length)), (REST, MaxMin(cosine))),
    ],
    ids=repr,
)
def test_selectors_split_their_pool(selector: TopK) -> None:
    example = Example.drawn(images=2, grid=(3, 4), prefix=0, kind="repeated")
    evidence = example.evidence()
    pool = torch.tensor([[8, 1, 5, 11, 0, 3, 2], [4, 7, 10, 9, 6, 1, 0]])
    for k in range(8):
        kept, rest = selector.select(evidence, pool, k)
        assert kept.shape == (2, k)
        assert rest.shape == (2, 7 - k)
        assert sum(selector.groups(k)) == k
        together = torch.cat([kept, rest], 1).sort(-1).values
        assert torch.equal(together, pool.sort(-1).values)


# --------------------------------------------------------------------------------- assigners


def test_drop_sends_all_away() -> None:
    rest = torch.tensor([[1, 2, 3]])
    assert Drop().assign(scores(0, 1, 2, 3), torch.tensor([[0]]), rest, (1,)).tolist() == [[-1] * 3]


def table_of(*rows: list[float]) -> Evidence:
    return evidence_of(torch.tensor([rows], dtype=torch.float32))


def test_nearest_joins_the_highest_score() -> None:
    evidence = table_of([0, 9, 0, 0], [0, 0, 0, 0], [1, 9, 0, 2], [3, 0, 0, 1])
    kept, rest = torch.tensor([[3, 0]]), torch.tensor([[1, 2]])
    assert Nearest(GivenPairs()).assign(evidence, kept, rest, (2,)).tolist() == [[0, 0]]
    assert Nearest(GivenPairs(), group=1).assign(evidence, kept, rest, (1, 1)).tolist() == [[1, 1]]
    assert Nearest(GivenPairs(), group=-1).assign(evidence, kept, rest, (1, 1)).tolist() == [[1, 1]]
    assert Nearest(GivenPairs(), group=0).assign(evidence, kept, rest, (1, 1)).tolist() == [[0, 0]]
    assert Nearest(GivenPairs(), group=1).assign(evidence, kept, rest, (2, 0)).tolist() == [
        [-1] * 2
    ]


def test_nobody_joins_a_nan() -> None:
    example = Example.drawn(images=2, grid=(2, 4), prefix=0).poisoned([0])
    kept = torch.tensor([[0, 3, 5]] * 2)
    rest = torch.tensor([[1, 2, 4, 6, 7]] * 2)
    slots = Nearest(cosine).assign(example.evidence(), kept, rest, (3,))
    assert not bool((slots == 0).any())


@pytest.mark.parametrize("group", [2, -3, 7])
def test_a_group_that_is_not_there(group: int) -> None:
    with pytest.raises(BadArgumentError) as caught:
        Nearest(cosine, group=group).assign(
            scores(0, 1, 2), torch.tensor([[0, 1]]), torch.tensor([[2]]), (1, 1)
        )
    assert f"group={group}" in str(caught.value)
    assert "2 groups" in str(caught.value)


# ----------------------------------------------------------------------------- select_assign


def test_orders_of_a_selection() -> None:
    evidence = scores(1, 5, 3, 9, 2, 7)
    stay = Then((2, TopK(Given(), rest="score")), (REST, Strided("floor")))
    # TopK: 3, 5; the rest by score is 1, 2, 4, 0; of these every second: 1, 4.
    orders = {
        "position": [1, 3, 4, 5],
        "groups": [3, 5, 1, 4],
        "selected": [3, 5, 1, 4],
    }
    for order, keep in orders.items():
        match = SelectAssign(stay, Drop(), order=order)  # pyright: ignore[reportArgumentType]
        plan = match.match(evidence, 4)
        plan.check()
        assert plan.keep.tolist() == [keep]
        assert [i for i, slot in enumerate(plan.dst[0].tolist()) if slot < 0] == [0, 2]


def test_groups_are_each_in_the_order_of_positions() -> None:
    evidence = scores(9, 1, 2, 3, 8, 4, 10)
    stay = Then((2, TopK(Given())), (REST, TopK(Given())))
    plan = SelectAssign(stay, Drop(), order="groups").match(evidence, 4)
    assert plan.keep.tolist() == [[0, 6, 4, 5]]
    plan = SelectAssign(stay, Drop(), order="selected").match(evidence, 4)
    assert plan.keep.tolist() == [[6, 0, 4, 5]]


@dataclass(frozen=True)
class Fused(Drop):
    """Sends the rest into one new token (EViT)."""

    extra: int = 1

    def assign(
        self,
        evidence: Evidence,
        kept: torch.Tensor,
        rest: torch.Tensor,
        groups: tuple[int, ...],
    ) -> torch.Tensor:
        return rest.new_full(rest.shape, kept.shape[1])


@pytest.mark.parametrize("order", ["position", "groups", "selected"])
def test_new_tokens_come_last_and_count(order: str) -> None:
    evidence = scores(1, 5, 3, 9, 2)
    match = SelectAssign(TopK(Given()), Fused(), order=order)  # pyright: ignore[reportArgumentType]
    plan = match.match(evidence, 3)
    plan.check()
    assert plan.kept == 3
    assert plan.keep[0, -1] == -1
    assert plan.dst[0, [0, 2, 4]].tolist() == [2, 2, 2]
    assert [match.min_tokens(n) for n in (1, 2, 9)] == [1, 2, 2]
    assert [SelectAssign(TopK(Given()), Drop()).min_tokens(n) for n in (1, 2, 9)] == [1, 1, 1]


# ------------------------------------------------------------------------------------- grids

SHAPES = list(product(range(1, 9), range(1, 9)))


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_every_count_of_cells_is_exact(rows: int, columns: int) -> None:
    for cells in range(1, rows * columns + 1):
        cell = cell_of(rows, columns, cells, CPU)
        middle = centres(rows, columns, cells, CPU)
        assert cell.shape == (rows * columns,)
        assert cell.unique().tolist() == list(range(cells))  # none empty, none beyond
        assert middle.shape == (cells,)
        assert cell[middle].tolist() == list(range(cells))  # each centre in its own cell


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_cells_are_rectangles_in_bands(rows: int, columns: int) -> None:
    for cells in range(1, rows * columns + 1):
        count = bands(rows, columns, cells)
        assert 1 <= count <= min(rows, cells)
        cell = cell_of(rows, columns, cells, CPU).view(rows, columns)
        tops: set[tuple[int, int]] = set()
        for k in range(cells):
            where = (cell == k).nonzero()
            (top, left), (bottom, right) = where.amin(0).tolist(), where.amax(0).tolist()
            assert len(where) == (bottom - top + 1) * (right - left + 1)
            tops.add((top, bottom))
        edges = sorted(tops)
        assert len(edges) == count
        assert all(after[0] == before[1] + 1 for before, after in pairwise(edges))
        heights = [bottom - top + 1 for top, bottom in edges]
        assert max(heights) - min(heights) <= 1


def test_cells_by_hand() -> None:
    assert cell_of(4, 4, 4, CPU).view(4, 4).tolist() == [
        *([[0, 0, 1, 1]] * 2),
        *([[2, 2, 3, 3]] * 2),
    ]
    assert centres(3, 3, 1, CPU).tolist() == [4]
    assert centres(6, 6, 4, CPU).tolist() == [7, 10, 25, 28]
    assert centres(2, 3, 6, CPU).tolist() == list(range(6))


def test_a_square_number_of_a_square_grid_is_square() -> None:
    for side, small in ((8, 4), (8, 2), (27, 9), (24, 12), (14, 7)):
        assert bands(side, side, small * small) == small


def test_each_token_joins_the_centre_of_its_cell() -> None:
    example = Example.drawn(images=2, grid=(4, 6), prefix=0)
    match = SelectAssign(GridCentres(), SameCell())
    for keep in range(1, 25):
        plan = match.match(example.evidence(), keep)
        plan.check()
        cell = cell_of(4, 6, keep, CPU)
        for i in range(2):
            assert torch.equal(cell[plan.keep[i]][plan.dst[i]], cell)


# ---------------------------------------------------------------------------------- refusals


def inside(share: object) -> Callable[[], object]:
    return lambda: Then((share, Strided()), (REST, Strided()))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Bipartite(cosine, order="score"), ["order='score'", "'position'", "'tome'"]),
        (lambda: SelectAssign(Strided(), Drop(), order="tome"), ["order='tome'", "'selected'"]),
        (lambda: TopK(length, rest="random"), ["rest='random'", "'position'", "'score'"]),
        (lambda: Strided("odd"), ["spacing='odd'", "'even'", "'floor'"]),
        *[
            (lambda k=k: Every(k), [f"k={k!r}", "int >= 2"])
            for k in (1, 0, -2, True, 2.5, "a", None)
        ],
        *[
            (lambda share=share: Protect(length, share), [f"share={share!r}", "[0, 1]"])
            for share in (-0.1, 1.1, True, "a", None, float("nan"))
        ],
        *[
            (inside(share), [f"share={share!r}", "[0, 1]"])
            for share in (-0.1, 1.5, -1, True, "a", None, float("nan"))
        ],
        (lambda: Then(), ["REST", "the last share"]),
        (lambda: Then((0.5, Strided())), ["REST", "the last share"]),
        (lambda: Then((REST, Strided()), (REST, Strided())), ["REST", "no other"]),
        (lambda: Then(Strided()), ["(share, selector)"]),
        (lambda: GreedyDPP(cosine, length, floor=-1.0), ["floor=-1.0", "> 0"]),
        # Parts in the wrong place.
        (lambda: Bipartite(length), ["FeatureNorm", "PairScorer"]),
        (lambda: Bipartite(cosine, split=3), ["split=3", "Split"]),
        (lambda: Bipartite(cosine, protect=length), ["FeatureNorm", "Protect"]),
        (lambda: Protect(cosine), ["Similarity", "Scorer"]),
        (lambda: TopK(cosine), ["Similarity", "Scorer"]),
        (lambda: MaxMin(length), ["FeatureNorm", "PairScorer"]),
        (lambda: GreedyDPP(length, length), ["FeatureNorm", "PairScorer"]),
        (lambda: GreedyDPP(cosine, cosine), ["Similarity", "Scorer"]),
        (lambda: Nearest(length), ["FeatureNorm", "PairScorer"]),
        (lambda: Nearest(cosine, group="last"), ["group='last'", "int"]),
        (lambda: SelectAssign(length, Drop()), ["FeatureNorm", "Selector"]),
        (lambda: SelectAssign(Strided(), length), ["FeatureNorm", "Assigner"]),
        (lambda: Then((0.5, length), (REST, Strided())), ["FeatureNorm", "Selector"]),
    ],
)
def test_bad_options(make: Callable[[], object], named: list[str]) -> None:
    with pytest.raises(BadArgumentError) as caught:
        make()
    assert all(part in str(caught.value) for part in named), str(caught.value)
