"""Matchers and their parts: orders, groups, cells, and the formulas of choices."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.matchers.sites import Given, GivenPairs, pool_of, scores, site
from tokenzoo.errors import BadArgumentError
from tokenzoo.matchers import (
    REST,
    Alternate,
    Bipartite,
    Drop,
    Every,
    Fuse,
    GreedyDPP,
    GridCentres,
    Halves,
    MaxMin,
    Nearest,
    Parity,
    Protect,
    SameCell,
    SelectAssign,
    Split,
    Strided,
    Then,
    TopK,
)
from tokenzoo.matchers.grid import bands, cell_of, centres
from tokenzoo.parts import Selector
from tokenzoo.scorers import FeatureNorm, Similarity
from tokenzoo.testing.strategies import Example, examples
from tokenzoo.token_map import take

CPU = torch.device("cpu")
cosine, length = Similarity("x"), FeatureNorm()


@pytest.mark.parametrize(
    ("split", "prefix", "proposes", "limit"),
    [
        (Alternate(), 1, lambda i, n: i % 2 == 0, lambda n: n // 2),
        # EvoPrune's a and b as its text has them: of indices from 1, the even ones propose.
        (Alternate("even"), 1, lambda i, n: (i + 1) % 2 == 0, lambda n: n // 2),
        (Halves(), 1, lambda i, n: i < n // 2, lambda n: n // 2),
        *[(Parity(), p, lambda i, n, p=p: (p + i) % 2 == 0, lambda n: n // 2) for p in range(3)],
        *[
            (Every(k), 0, lambda i, n, k=k: i % k != k - 1, lambda n, k=k: (n - n // k) * (n >= k))
            for k in range(2, 6)
        ],
    ],
)
def test_who_proposes_and_how_many_can_merge(
    split: Split, prefix: int, proposes: Callable[[int, int], bool], limit: Callable[[int], int]
) -> None:
    for n in range(1, 14):
        free = torch.arange(n)[None] * 3 + 1  # whatever the indices are
        sources, targets = split.sides(free, prefix)
        wanted = torch.tensor([proposes(i, n) for i in range(n)])
        assert torch.equal(sources, free[:, wanted])
        assert torch.equal(targets, free[:, ~wanted])
        assert split.limit(n) == limit(n)


@pytest.mark.parametrize(
    ("tokens", "merges", "share", "held"),
    [
        *[(100, 37, 0.25, 25), (100, 38, 0.25, 24), (100, 50, 0.25, 0), (101, 50, 0.25, 1)],
        *[(100, 51, 0.25, 0), (10, 0, 0.25, 2), (10, 3, 1.0, 4), (10, 0, 0.0, 0), (1, 0, 0.5, 0)],
        (100, 0, 0.29, 29),  # although 0.29 * 100 is 28.999999999999996 in floats
    ],
)
def test_protect_counts(tokens: int, merges: int, share: float, held: int) -> None:
    assert Protect(length, share).count(tokens, merges) == held


def test_protect_holds_the_highest() -> None:
    evidence, protect = scores(3, 9, 1, 9, 5, 7, 2, torch.inf), Protect(Given(), 0.5)
    for merges, held in ((1, [1, 3, 4, 5]), (3, [1, 3]), (4, [])):
        found, free = protect.partition(evidence, merges)
        assert found.tolist() == [held]
        assert free.tolist() == [[i for i in range(8) if i not in held]]
    assert protect.partition(scores(1, 1, 1, 1), 0)[0].tolist() == [[0, 1]]


def test_sticky_holds_first_what_was_held_before() -> None:
    before = torch.tensor([[False, False, True, False, False, True, False, True]])
    evidence = site(torch.tensor([3.0, 9, 1, 8, 5, 7, 2, 0])[None, :, None], held=before)
    # 5, 2 and 7 were held; then comes the best of the others, or there is room for two of them.
    for sticky, merges, held in (
        (True, 0, [1, 2, 5, 7]),
        (True, 3, [2, 5]),
        (False, 0, [1, 3, 4, 5]),
    ):
        found, _ = Protect(Given(), 0.5, sticky=sticky).partition(evidence, merges)
        assert found.tolist() == [held]


def test_tome_order_is_proposers_then_receivers() -> None:
    table = torch.zeros(1, 6, 6)
    for source, target, score in ((0, 1, 0.1), (2, 3, 0.9), (4, 5, 0.5)):
        table[0, source, target] = score
    match = Bipartite(GivenPairs(), split=Parity(), order="tome")
    # Without a prefix the proposers that stay come in descending order of their scores ...
    assert match.match(site(table), 5).keep.tolist() == [[4, 0, 1, 3, 5]]
    # ... and with one by position, where the sides change places.
    plan = match.match(site(table.mT.contiguous(), prefix=1), 5)
    assert plan.keep.tolist() == [[1, 5, 0, 2, 4]]
    assert plan.dst.tolist() == [[2, 0, 3, 3, 4, 1]]


@given(examples(max_tokens=14), st.sampled_from([None, 0.0, 0.3, 1.0]))
@settings(max_examples=40)
def test_the_best_pairs_merge_and_what_is_held_does_not(
    example: Example, share: float | None
) -> None:
    evidence = example.evidence()
    b, n = evidence.x.shape[:2]
    protect = None if share is None else Protect(length, share)
    match = Bipartite(cosine, protect=protect)
    assert match.match(evidence, n).keep.tolist() == pool_of(evidence).tolist()
    for keep in range(match.min_tokens(n), n):
        plan = match.match(evidence, keep)
        held, free = pool_of(evidence)[:, :0], pool_of(evidence)
        if protect is not None:
            held, free = protect.partition(evidence, n - keep)
            assert plan.held is not None
            assert [plan.keep[i, plan.held[i]].tolist() for i in range(b)] == held.tolist()
        assert (plan.held is None) == (protect is None)
        assert bool((plan.keep.diff(dim=-1) > 0).all())  # in the order of positions
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


@pytest.mark.parametrize(
    ("rest", "kept", "chosen", "left"),
    [
        ("position", "score", [7, 5, 1], [6, 4, 3, 2, 0]),
        ("score", "score", [7, 5, 1], [3, 0, 6, 2, 4]),
        ("score", "position", [5, 1, 7], [3, 0, 6, 2, 4]),
    ],
)
def test_top_k(rest: str, kept: str, chosen: list[int], left: list[int]) -> None:
    """Ties go to the first of the pool, what is no number comes last; "position" is that in the pool."""
    evidence = scores(3, 9, 1, 5, torch.nan, 9, 2, 10)
    pool = torch.tensor([[6, 5, 4, 3, 2, 1, 0, 7]])
    found = TopK(Given(), rest=rest, kept=kept).select(evidence, pool, 3)  # pyright: ignore[reportArgumentType]
    assert [one.tolist() for one in found] == [[chosen], [left]]


@pytest.mark.parametrize(
    ("spacing", "p", "k", "kept"),
    [
        *[("even", 10, 4, [0, 2, 5, 7]), ("even", 5, 5, [*range(5)]), ("even", 7, 0, [])],
        *[("floor", 10, 4, [0, 2, 4, 6]), ("floor", 5, 5, [*range(5)]), ("floor", 7, 0, [])],
    ],
)
def test_strided_goes_by_the_order_of_the_pool(
    spacing: str, p: int, k: int, kept: list[int]
) -> None:
    evidence = scores(*range(p))
    chosen, rest = Strided(spacing).select(evidence, pool_of(evidence).flip(1), k)  # pyright: ignore[reportArgumentType]
    assert (p - 1 - chosen).tolist() == [kept]
    assert (p - 1 - rest).tolist() == [[i for i in range(p) if i not in kept]]


def test_then_takes_group_after_group() -> None:
    evidence = scores(0, 1, 2, 3, 4, 5, 6, 7)
    then = Then((0.5, TopK(Given(), rest="score")), (1, Strided()), (REST, TopK(Given())))
    kept, rest = then.select(evidence, pool_of(evidence), 4)
    assert kept.tolist() == [[7, 6, 5, 4]]
    assert sorted(rest[0].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("shares", "k", "groups"),
    [
        *[((0.5,), 5, (2, 3)), ((0.5,), 1, (0, 1)), ((1.0,), 4, (4, 0)), ((3,), 5, (3, 2))],
        *[((9,), 5, (5, 0)), ((0.5, 9), 9, (4, 5, 0)), ((0.75, 0.75), 8, (6, 2, 0))],
        ((0.29,), 100, (29, 71)),
    ],
)
def test_groups_of_then(shares: tuple[float, ...], k: int, groups: tuple[int, ...]) -> None:
    then = Then(*((share, Strided()) for share in shares), (REST, Strided()))
    assert then.groups(k) == groups


@given(examples(max_tokens=10))
@settings(max_examples=25)
def test_max_min_is_the_greedy_choice(example: Example) -> None:
    evidence = example.double().evidence()
    n = evidence.x.shape[1]
    kept, _ = MaxMin(cosine).select(evidence, pool_of(evidence), n)
    own = torch.eye(n, dtype=torch.bool)
    for order, scores_of_one in zip(kept.tolist(), cosine.score(evidence).dense(), strict=True):
        distance = (1 - scores_of_one).masked_fill(own, torch.inf)
        for step, chosen in enumerate(order):
            # To the nearest of those that are chosen; of the first, to the nearest of all others.
            worth = distance[:, order[:step] or [*range(n)]].amin(1)
            best = worth[order[step:]].amax()
            assert torch.isclose(worth[chosen], best, rtol=0, atol=1e-7)
    few, _ = MaxMin(cosine).select(evidence, pool_of(evidence), min(3, n))
    assert torch.equal(few, kept[:, : min(3, n)])  # for fewer, the first of them


def test_greedy_dpp_adds_the_largest_determinant() -> None:
    evidence = Example.drawn(images=2, grid=(3, 3), prefix=0, channels=12).evidence()
    kept, _ = GreedyDPP(cosine, length).select(evidence, pool_of(evidence), 6)
    weight = length.score(evidence)
    kernel = weight[:, :, None] * cosine.score(evidence).dense() * weight[:, None]
    for one, order in zip(kernel, kept.tolist(), strict=True):
        for step, pick in enumerate(order):
            with_one = {t: [*order[:step], t] for t in range(9) if t not in order[:step]}
            gains = {t: float(one[some][:, some].det()) for t, some in with_one.items()}
            assert max(gains, key=lambda t: gains[t]) == pick


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("select", [MaxMin(cosine), GreedyDPP(cosine, length)], ids=repr)
def test_a_token_that_is_no_number_is_chosen_last_and_changes_no_choice(
    select: Selector, value: float
) -> None:
    """3 channels: from the fourth token on all gains of a DPP are rounding errors, some negative."""
    example = Example.drawn(images=2, grid=(3, 4), prefix=0, channels=3)
    evidence, others = example.evidence(), torch.tensor([[*range(3), *range(4, 12)]] * 2)
    bad = example.poisoned([3], value).evidence()
    clean, _ = select.select(evidence, others, 3)
    assert torch.equal(select.select(bad, pool_of(bad), 3)[0], clean)
    kept, rest = select.select(bad, pool_of(bad), 11)
    assert rest.tolist() == [[3], [3]]
    assert kept.sort().values.tolist() == others.tolist()


@pytest.mark.parametrize(
    ("group", "groups", "slots"),
    [
        *[(None, (2,), [0, 1]), (1, (1, 1), [1, 1]), (-1, (1, 1), [1, 1]), (0, (1, 1), [0, 0])],
        (1, (2, 0), [-1, -1]),
    ],
)
def test_nearest_joins_the_highest_score(
    group: int | None, groups: tuple[int, ...], slots: list[int]
) -> None:
    table = torch.tensor([[0.0, 9, 0, 0], [0, 0, 0, 0], [3, 9, 0, 2], [3, 0, 0, 1]])
    table[1, 3] = 1
    kept, rest = torch.tensor([[3, 0]]), torch.tensor([[1, 2]])
    found = Nearest(GivenPairs(), group).assign(site(table[None]), kept, rest, groups)
    assert found.tolist() == [slots]


@pytest.mark.parametrize("group", [2, -3])
def test_a_group_that_is_not_there(group: int) -> None:
    kept, rest = torch.tensor([[0, 1]]), torch.tensor([[2]])
    with pytest.raises(BadArgumentError, match=f"group={group}"):
        Nearest(cosine, group).assign(scores(0, 1, 2), kept, rest, (1, 1))


def test_nobody_joins_a_nan() -> None:
    evidence = Example.drawn(images=2, grid=(2, 4), prefix=0).poisoned([0]).evidence()
    kept, rest = torch.tensor([[0, 3, 5]] * 2), torch.tensor([[1, 2, 4, 6, 7]] * 2)
    assert not bool((Nearest(cosine).assign(evidence, kept, rest, (3,)) == 0).any())


@pytest.mark.parametrize(
    ("order", "keep"),
    [
        ("position", [0, 4, 5, 6]),
        ("groups", [0, 6, 4, 5]),
        ("selected", [6, 0, 4, 5]),
    ],
)
@pytest.mark.parametrize("join", [Drop(), Fuse()], ids=repr)
def test_orders_of_a_selection_in_which_new_tokens_come_last(
    order: str, keep: list[int], join: Drop | Fuse
) -> None:
    stay = Then((2, TopK(Given())), (REST, TopK(Given())))
    match = SelectAssign(stay, join, order=order)  # pyright: ignore[reportArgumentType]
    plan = match.match(scores(9, 1, 2, 3, 8, 4, 10), 4 + join.extra)
    plan.check()
    assert plan.keep.tolist() == [keep + [-1] * join.extra]
    assert plan.dst[0, 1:4].tolist() == [4 if join.extra else -1] * 3
    assert [match.min_tokens(n) for n in (1, 2, 9)] == [1, 1 + join.extra, 1 + join.extra]


@pytest.mark.parametrize(("rows", "columns"), list(product((1, 2, 3, 5, 8), (1, 2, 4, 7))))
def test_cells_are_rectangles_in_bands_as_many_as_were_asked_for(rows: int, columns: int) -> None:
    place = torch.arange(rows * columns).view(rows, columns)
    for cells in range(1, rows * columns + 1):
        cell, middle = (found(rows, columns, cells, CPU) for found in (cell_of, centres))
        assert cell[middle].tolist() == list(range(cells))  # each centre in its own cell
        heights: dict[int, int] = {}
        for k in range(cells):
            inside = place.flatten()[cell == k]
            top, bottom = int(inside.min()) // columns, int(inside.max()) // columns
            left, right = int((inside % columns).min()), int((inside % columns).max())
            assert torch.equal(inside, place[top : bottom + 1, left : right + 1].flatten())
            assert heights.setdefault(top, bottom - top + 1) == bottom - top + 1
        assert len(heights) == bands(rows, columns, cells) <= cells
        assert sum(heights.values()) == rows
        assert max(heights.values()) - min(heights.values()) <= 1


def test_cells_by_hand() -> None:
    assert cell_of(2, 4, 2, CPU).view(2, 4).tolist() == [[0, 0, 1, 1]] * 2
    assert centres(6, 6, 4, CPU).tolist() == [7, 10, 25, 28]
    for side, small in ((8, 4), (8, 2), (27, 9), (24, 12), (14, 7)):
        assert bands(side, side, small * small) == small  # square cells of a square grid


def test_each_token_joins_the_centre_of_its_cell() -> None:
    evidence = Example.drawn(images=2, grid=(4, 6), prefix=0).evidence()
    for keep in range(1, 25):
        plan = SelectAssign(GridCentres(), SameCell()).match(evidence, keep)
        plan.check()
        cell = cell_of(4, 6, keep, CPU)
        assert torch.equal(cell[take(plan.keep, plan.dst)], cell.expand(2, -1))
