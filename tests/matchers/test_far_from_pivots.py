"""FarFromPivots and DART: against the definition, one token at a time, and where it has to give way."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenzoo
from tokenzoo import Evidence
from tokenzoo.errors import BadArgumentError, MissingEvidenceError
from tokenzoo.matchers import FarFromPivots
from tokenzoo.matchers.far_from_pivots import set_order
from tokenzoo.scorers import CLSAttention, FeatureNorm
from tokenzoo.testing import PropertyViolation, check

NORMS = FeatureNorm("all_keys", power=1)
B, N, C, H, D = 2, 17, 5, 3, 4


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen(t: int, *, prefix: int = 0, seed: int = 0) -> Evidence:
    """N visual tokens, and t text tokens after them."""

    def site(n: int, seed: int, **more: Any) -> Evidence:
        keys = draws(B, H, n, D, seed=seed + 1)
        x = draws(B, n, C, seed=seed)
        return Evidence(x, mass=torch.ones(B, n), show={"keys": lambda: keys}, **more)

    return site(N, seed, prefix=prefix, layers={"text": site(t, seed + 50)})


def by_definition(evidence: Evidence, i: int, pool: list[int], k: int, own: int, of_text: int):
    """DART of one image, by lists and one cosine at a time."""

    def norms(of: Evidence) -> list[float]:
        return [float(of.keys[i, :, j].abs().sum()) for j in range(of.x.shape[1])]

    def cosine(one: Tensor, other: Tensor) -> float:
        return float(one @ other / (one.norm() * other.norm()))

    text = evidence.at("text")
    own_norms, text_norms = norms(evidence), norms(text)
    chosen = sorted(pool, key=lambda j: -own_norms[j])[: min(own, k)]
    of_text_norms = sorted(range(len(text_norms)), key=lambda j: -text_norms[j])[:of_text]
    pivots = [evidence.x[i, j] for j in chosen] + [text.x[i, j] for j in of_text_norms]
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
    evidence = seen(t, seed=t)
    pools = torch.arange(N).expand(B, N), torch.tensor([[12, 3, 5, 0, 8, 2, 16]] * B)
    part = FarFromPivots(NORMS, pivots=own, text_pivots=of_text)
    for pool in pools:
        for k in range(pool.shape[1] + 1):
            kept, rest = part.select(evidence, pool, k)
            for i in range(B):
                expected = by_definition(evidence, i, pool[i].tolist(), k, own, of_text)
                assert (kept[i].tolist(), rest[i].tolist()) == expected


def test_a_remainder_goes_to_the_pivots_that_come_first() -> None:
    """Two pivots, three places: of the tokens at right angles the first takes two."""
    x = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [1, 0.1, 1], [1, 0.2, 1], [1, 0.3, 1], [1, 0.4, 1]]])
    keys = torch.tensor([9.0, 8, 1, 1, 1, 1])[None, None, :, None]
    evidence = Evidence(x, mass=torch.ones(1, 6), show={"keys": lambda: keys})
    kept, rest = FarFromPivots(NORMS, pivots=2).select(evidence, torch.arange(6)[None], 5)
    assert kept.tolist() == [[0, 1, 5, 4, 2]]
    assert rest.tolist() == [[3]]


def test_norms_of_all_heads_side_by_side_decide_and_not_their_mean() -> None:
    """Opposite heads have a mean of zero; the Euclidean norm has another favourite."""
    keys = torch.zeros(1, 2, 3, 2)
    keys[0, :, 0] = torch.tensor([[3.0, 3], [-3, -3]])  # L1 12, L2 6, mean 0
    keys[0, :, 1] = torch.tensor([[7.0, 0], [0, 0]])  # L1 7, L2 7
    evidence = Evidence(torch.eye(3)[None], mass=torch.ones(1, 3), show={"keys": lambda: keys})
    pool = torch.arange(3)[None]
    assert FarFromPivots(NORMS, pivots=1).select(evidence, pool, 1)[0].tolist() == [[0]]
    other = FarFromPivots(FeatureNorm("all_keys"), pivots=1)
    assert other.select(evidence, pool, 1)[0].tolist() == [[1]]


def test_ties_go_to_the_lower_index() -> None:
    evidence = Evidence(torch.ones(1, 6, 2), mass=torch.ones(1, 6))
    kept, rest = FarFromPivots(FeatureNorm(), pivots=2).select(evidence, torch.arange(6)[None], 4)
    assert (kept.tolist(), rest.tolist()) == ([[0, 1, 2, 3]], [[4, 5]])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_pivot_that_is_no_number_says_nothing_and_a_candidate_comes_last(value: float) -> None:
    x, keys = draws(1, 6, C), torch.ones(1, 1, 6, 1)
    x[:, [0, 3]] = value
    for pivot, expected in ((0, [0, 1, 2, 4, 5, 3]), (5, [5, None, None, None, 0, 3])):
        keys[:, :, pivot] = 2
        evidence = Evidence(x, mass=torch.ones(1, 6), show={"keys": lambda: keys})
        kept, _ = FarFromPivots(NORMS, pivots=1).select(evidence, torch.arange(6)[None], 6)
        pairs = zip(kept[0].tolist(), expected, strict=True)
        assert all(wanted in (None, found) for found, wanted in pairs)
        keys[:, :, pivot] = 1


# ----------------------------------------------------------------------------- the authors' order


def test_the_order_of_a_set_is_that_of_cpython() -> None:
    rows = [[646, 334, 254, 253, 626], [3, 1, 2, 99, 35], [0, 64, 32, 128, 7]]
    order = set_order(torch.tensor(rows))
    for row, places in zip(rows, order.tolist(), strict=True):
        assert [row[place] for place in places] == list(set(row))
        assert sorted(places) == list(range(5))


def test_the_order_counts_the_prefix_and_changes_the_result() -> None:
    """Positions are those in the prompt: with another prefix the set has another order."""
    pool = torch.arange(N).expand(B, N)
    results = {
        order: [
            FarFromPivots(NORMS, text_pivots=4, order=order)
            .select(seen(9, prefix=prefix), pool, 9)[0]
            .sort()
            .values.tolist()
            for prefix in range(40)
        ]
        for order in ("score", "set")
    }
    assert len({str(kept) for kept in results["score"]}) == 1
    assert len({str(kept) for kept in results["set"]}) > 1


def test_the_order_of_a_set_waits_for_the_device_and_the_default_does_not() -> None:
    check(FarFromPivots(NORMS), "static_shapes", examples=5)
    with pytest.raises(PropertyViolation, match="tolist"):
        check(FarFromPivots(NORMS, order="set"), "static_shapes", examples=5)
    part = FarFromPivots(NORMS, text_pivots=4)

    def select(x: Tensor, keys: Tensor) -> Tensor:
        text = Evidence(x[:, :3], mass=x[:, :3, 0], show={"keys": lambda: keys[:, :, :3]})
        evidence = Evidence(x, mass=x[..., 0], show={"keys": lambda: keys}, layers={"text": text})
        pool = torch.arange(x.shape[1]).expand(x.shape[0], -1)
        return part.select(evidence, pool, 9)[0]

    compiled = torch.compile(select, backend="eager", fullgraph=True)
    x, keys = draws(B, N, C), draws(B, H, N, D)
    assert torch.equal(compiled(x, keys), select(x, keys))


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scorer": 3}, "scorer=3; it must be a Scorer"),
        ({"pivots": 0}, "pivots=0; it must be an int >= 1"),
        ({"text_pivots": -1}, "text_pivots=-1; it must be an int >= 0"),
        ({"text_pivots": 2.0}, "text_pivots=2.0; it must be an int >= 0"),
        ({"order": "hash"}, "order='hash'; it must be 'score' or 'set'"),
        (
            {"scorer": CLSAttention(layer=-2), "text_pivots": 1},
            "CLSAttention(heads='mean', layer=-2), which reads another layer",
        ),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadArgumentError, match=re.escape(words)):
        FarFromPivots(**{"scorer": NORMS, **options})


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        *[("fastv", {"layer": 0}), ("fastv", {"layer": True}), ("fastv", {"layer": None})],
        *[("dart", {"layer": 0}), ("dart", {"pivots": 0}), ("dart", {"match_reference": 1})],
    ],
)
def test_recipes_refuse_by_the_name_of_the_option(recipe: str, options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(BadArgumentError, match=re.escape(f"{name}={value!r}")):
        tokenzoo.build(recipe, **options)


# ------------------------------------------------------------------------------------ the recipes


def test_stages_positions_and_needs() -> None:
    (step,) = tokenzoo.build("dart", layer=5).recipe.steps
    assert (step.stage, step.positions) == (tokenzoo.Stage.LLM(5), "keep")
    assert step.needs == {"keys", "x@text", "keys@text"}
    (step,) = tokenzoo.build("dart", text_pivots=0).recipe.steps
    assert step.needs == {"keys"}
    (step,) = tokenzoo.build("fastv", layer=3).recipe.steps
    assert (step.stage, step.positions) == (tokenzoo.Stage.LLM(3), "keep")
    assert step.needs == {"last_attention"}
    (step,) = tokenzoo.build("fastervlm").recipe.steps
    assert (step.stage, step.needs) == (tokenzoo.Stage.FEATURES, {"cls_attention"})


@pytest.mark.parametrize("t", [0, 1, 3, 8])
@pytest.mark.parametrize("match_reference", [False, True])
def test_dart_meets_every_count_whatever_the_text(t: int, match_reference: bool) -> None:
    x, keys = draws(B, N + 2, C), draws(B, H, N + 2, D, seed=1)
    text = {"x": draws(B, t, C, seed=2), "keys": draws(B, H, t, D, seed=3)}
    for keep in range(1, N + 3):
        zoo = tokenzoo.build("dart", keep=keep, match_reference=match_reference)
        reduced = zoo.reduce(x, keys=keys, prefix=2, at={"text": text})
        reduced.plan.check()
        assert reduced.x.shape == (B, 2 + min(keep, N), C)
        assert bool((reduced.plan.keep.diff(dim=-1) > 0).all())  # in order


def test_dart_without_the_text_is_refused_and_without_text_pivots_it_is_not() -> None:
    x, keys = draws(B, N, C), draws(B, H, N, D)
    with pytest.raises(MissingEvidenceError, match="needs keys@text, x@text") as caught:
        tokenzoo.build("dart").reduce(x, keys=keys)
    assert "at={'text': {'x': ...}}" in str(caught.value)
    assert tokenzoo.build("dart", text_pivots=0, keep=6).reduce(x, keys=keys).x.shape[1] == 6


def test_fastv_keeps_what_the_last_token_attends_to() -> None:
    attention = torch.tensor([[0.1, 0.4, 0.0, 0.5], [0.2, 0.1, 0.5, 0.1]])[None]  # [1, h, n]
    zoo = tokenzoo.build("fastv", keep=2)
    reduced = zoo.reduce(draws(1, 4, C), last_attention=attention)
    assert reduced.plan.keep.tolist() == [[1, 3]]  # means 0.15, 0.25, 0.25, 0.3
    with pytest.raises(MissingEvidenceError, match="needs last_attention"):
        zoo.reduce(draws(1, 4, C), cls_attention=attention)
