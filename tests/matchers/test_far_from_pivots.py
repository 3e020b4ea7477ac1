"""FarFromPivots: against the definition, one token at a time, and where it has to give way."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.matchers.sites import draws, site
from tokenzoo import Evidence, Stage
from tokenzoo.matchers import FarFromPivots
from tokenzoo.matchers.far_from_pivots import set_order
from tokenzoo.scorers import FeatureNorm
from tokenzoo.testing import PropertyViolation, check

NORMS = FeatureNorm("all_keys", power=1)
B, N, C, H, D = 2, 17, 5, 3, 4


def seen(t: int, *, prefix: int = 0) -> Evidence:
    """N visual tokens, and t text tokens after them."""

    def layer(n: int, seed: int, **more: Any) -> Evidence:
        keys = draws(B, H, n, D, seed=seed + 1)
        return site(draws(B, n, C, seed=seed), show={"keys": lambda: keys}, **more)

    return layer(N, t, prefix=prefix, layers={"text": layer(t, t + 50)})


def by_definition(evidence: Evidence, i: int, pool: list[int], k: int, own: int, of_text: int):
    """DART of one image, by lists and one cosine at a time."""

    def ranked(of: Evidence, places: list[int]) -> list[int]:
        return sorted(places, key=lambda j: -float(of.keys[i, :, j].abs().sum()))

    def cosine(one: Tensor, other: Tensor) -> float:
        return float(one @ other / (one.norm() * other.norm()))

    text = evidence.at("text")
    chosen = ranked(evidence, pool)[: min(own, k)]
    best_of_text = ranked(text, [*range(text.x.shape[1])])[:of_text]
    pivots = [evidence.x[i, j] for j in chosen] + [text.x[i, j] for j in best_of_text]
    left = [j for j in pool if j not in chosen]
    places = k - len(chosen)
    for number, pivot in enumerate(pivots):
        share = places // len(pivots) + (number < places % len(pivots))
        far = sorted(left, key=lambda j: cosine(pivot, evidence.x[i, j]))[:share]
        chosen += far
        left = [j for j in left if j not in far]
    return chosen, left


@pytest.mark.parametrize(("t", "own", "of_text"), list(product([0, 2, 9], [1, 4, 40], [0, 3])))
def test_it_is_what_the_definition_says_at_every_count(t: int, own: int, of_text: int) -> None:
    evidence = seen(t)
    part = FarFromPivots(NORMS, pivots=own, text_pivots=of_text)
    for pool in ([*range(N)], [12, 3, 5, 0, 8, 2, 16]):
        for k in range(len(pool) + 1):
            kept, rest = part.select(evidence, torch.tensor([pool] * B), k)
            for i in range(B):
                expected = by_definition(evidence, i, pool, k, own, of_text)
                assert (kept[i].tolist(), rest[i].tolist()) == expected


def test_ties_go_to_the_lower_index() -> None:
    evidence = site(torch.ones(1, 6, 2))
    kept, rest = FarFromPivots(FeatureNorm(), pivots=2).select(evidence, torch.arange(6)[None], 4)
    assert (kept.tolist(), rest.tolist()) == ([[0, 1, 2, 3]], [[4, 5]])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("pivot", "places"), [(0, {0: 0, 3: 5}), (5, {5: 0, 0: 4, 3: 5})])
def test_a_pivot_that_is_no_number_says_nothing_and_a_candidate_comes_last(
    value: float, pivot: int, places: dict[int, int]
) -> None:
    x, keys = draws(1, 6, C), torch.ones(1, 1, 6, 1)
    x[:, [0, 3]] = value
    keys[:, :, pivot] = 2
    evidence = site(x, show={"keys": lambda: keys})
    kept, _ = FarFromPivots(NORMS, pivots=1).select(evidence, torch.arange(6)[None], 6)
    assert {token: kept[0].tolist().index(token) for token in places} == places
    if pivot == 0:  # to it all others are equally far
        assert kept[0].tolist() == [0, 1, 2, 4, 5, 3]


def test_the_order_of_a_set_is_that_of_cpython_and_waits_for_the_device() -> None:
    rows = [[646, 334, 254, 253, 626], [3, 1, 2, 99, 35], [0, 64, 32, 128, 7]]
    for row, places in zip(rows, set_order(torch.tensor(rows)).tolist(), strict=True):
        assert [row[place] for place in places] == list(set(row))
    with pytest.raises(PropertyViolation, match="tolist"):
        check(FarFromPivots(NORMS, order="set"), "static_shapes", examples=5)


def test_the_order_of_a_set_counts_the_prefix() -> None:
    """Positions are those in the prompt: with another prefix the set has another order."""
    pool = torch.arange(N).expand(B, N)

    def kept(order: Any) -> set[str]:
        part = FarFromPivots(NORMS, order=order)
        chosen = (part.select(seen(9, prefix=prefix), pool, 9)[0] for prefix in range(40))
        return {str(one.sort().values.tolist()) for one in chosen}

    assert len(kept("score")) == 1
    assert len(kept("set")) > 1


@pytest.mark.parametrize(
    ("name", "options", "stage", "needs"),
    [
        ("dart", {"layer": 5}, Stage.LLM(5), {"keys", "x@text", "keys@text"}),
        ("dart", {"layer": 5, "text_pivots": 0}, Stage.LLM(5), {"keys"}),
        ("fastv", {"layer": 3}, Stage.LLM(3), {"last_attention"}),
        ("fastervlm", {}, Stage.FEATURES, {"cls_attention"}),
    ],
)
def test_stages_and_needs_of_recipes(
    name: str, options: dict[str, Any], stage: Stage, needs: set[str]
) -> None:
    (step,) = tokenzoo.build(name, **options).recipe.steps
    assert (step.stage, step.positions, step.needs) == (stage, "keep", needs)


@pytest.mark.parametrize("match_reference", [False, True])
@pytest.mark.parametrize("t", [0, 3])
def test_dart_meets_every_count_whatever_the_text(t: int, match_reference: bool) -> None:
    x, keys = draws(B, N + 2, C), draws(B, H, N + 2, D, seed=1)
    text = {"x": draws(B, t, C, seed=2), "keys": draws(B, H, t, D, seed=3)}
    for keep in range(1, N + 3):
        zoo = tokenzoo.build("dart", keep=keep, match_reference=match_reference)
        reduced = zoo.reduce(x, keys=keys, prefix=2, at={"text": text})
        assert reduced.x.shape == (B, 2 + min(keep, N), C)
        assert bool((reduced.plan.keep.diff(dim=-1) > 0).all())  # in order
