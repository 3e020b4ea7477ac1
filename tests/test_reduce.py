"""`reduce` on bare tensors: what it returns, what it ignores, and everything that it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import tokenzoo
from tokenzoo import Evidence, Recipe, Scorer, Stage, Step
from tokenzoo.errors import BadArgumentError, BudgetError, MissingEvidenceError
from tokenzoo.matchers import Bipartite, Drop, SelectAssign, Strided, TopK
from tokenzoo.mergers import Identity, WeightedMean
from tokenzoo.reduce import Reduced, reduce
from tokenzoo.schedules import Once
from tokenzoo.scorers import (
    CLSAttention,
    FeatureNorm,
    LastTokenAttention,
    ReceivedAttention,
    Similarity,
)
from tokenzoo.testing import Example
from tokenzoo.testing.subjects import needs_all

B, N, C = 2, 9, 4  # one prefix token and eight patches


def select(scorer: Scorer, keep: int | float = 4) -> tokenzoo.Recipe:
    return Recipe(
        Step(Stage.FEATURES, Once(), SelectAssign(TopK(scorer), Drop()), Identity()), keep=keep
    )


PAIRS = Recipe(Step(Stage.BLOCK, Once(), Bipartite(Similarity("x")), WeightedMean()), keep=6)


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = draws(B, N, C)


def zoo(recipe: Recipe, **options: Any) -> Reduced:
    return tokenzoo.build(recipe).reduce(X, **options)


def test_what_comes_back() -> None:
    scores = torch.tensor([[9.0, 1, 5, 2, 8, 3, 7, 0, 4], [9.0, 8, 7, 6, 5, 4, 3, 2, 1]])
    reduced = zoo(select(ReceivedAttention(), 3), received_attention=scores, prefix=1)
    assert reduced.plan.keep.tolist() == [[0, 2, 4, 6], [0, 1, 2, 3]]
    assert reduced.plan.dst.tolist() == [
        *[[0, -1, 1, -1, 2, -1, 3, -1, -1], [0, 1, 2, 3, -1, -1, -1, -1, -1]],
    ]
    assert torch.equal(reduced.x[0], X[0, [0, 2, 4, 6]])
    assert torch.equal(reduced.mass, torch.ones(2, 4))
    y = reduced.unmerge(reduced.x, fill=-5)
    assert torch.equal(y[0, 4], X[0, 4])
    assert bool((y[0, 1] == -5).all())


def test_prefix_tokens_are_neither_counted_nor_touched() -> None:
    for prefix in (0, 1, 3):
        reduced = zoo(PAIRS, prefix=prefix)
        assert reduced.x.shape == (B, 6 + prefix, C)
        assert torch.equal(reduced.x[:, :prefix], X[:, :prefix])
        assert reduced.plan.keep[:, :prefix].tolist() == [list(range(prefix))] * 2


def test_masses_are_carried_and_weigh() -> None:
    mass = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8, 9]] * 2)
    reduced = zoo(PAIRS, mass=mass, prefix=1)
    torch.testing.assert_close(reduced.mass.sum(1), mass.sum(1))
    torch.testing.assert_close(
        (reduced.x * reduced.mass[..., None]).sum(1), (X * mass[..., None]).sum(1)
    )
    expected = reduced.plan.sum(X * mass[..., None]) / reduced.plan.sum(mass)[..., None]
    torch.testing.assert_close(reduced.x, expected)


@pytest.mark.parametrize("name", tokenzoo.list_recipes())
@pytest.mark.parametrize("keep", [1.0, 12, 99])
def test_where_nothing_is_to_be_removed_x_comes_back_as_it_is(name: str, keep: int | float) -> None:
    recipe = tokenzoo.build(name).recipe
    if recipe.steps[0].matcher.ragged:
        pytest.skip("how many stay comes from the data")
    example = Example.drawn(grid=(3, 4), prefix=1, dtype=torch.bfloat16)
    held = torch.zeros(2, 13, dtype=torch.bool)
    held[:, 5:9] = True
    for protected in (None,) if needs_all(recipe) else (None, held):
        out = example.reduce(Recipe(recipe.steps[0], keep=keep), protected=protected)
        assert torch.equal(out.x, example.x)
        assert torch.equal(out.mass, example.mass)
        assert out.plan.keep.tolist() == out.plan.dst.tolist() == [list(range(13))] * 2


def test_no_more_tokens_than_wanted_are_left_whole() -> None:
    reduced = tokenzoo.build("divprune", keep=64).reduce(X)
    assert torch.equal(reduced.x, X)
    assert torch.equal(reduced.plan.keep, torch.arange(N).expand(B, N))
    merged = tokenzoo.build("evoprune", keep=64).reduce(X, keys=X, queries=X, prefix=1)
    assert torch.equal(merged.x, X)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_stays(dtype: torch.dtype) -> None:
    x = X.to(dtype)
    for name in ("evoprune", "divprune", "pool"):
        reduced = tokenzoo.build(name, keep=6).reduce(x, keys=x, queries=x, grid=(3, 3))
        assert reduced.x.dtype == dtype
        assert reduced.mass.dtype == torch.float32
        assert reduced.x.shape == (B, 6, C)


def test_keys_of_one_head_are_keys() -> None:
    heads = zoo(PAIRS)
    recipe = Recipe(
        Step(Stage.BLOCK, Once(), Bipartite(Similarity("keys")), WeightedMean()), keep=6
    )
    assert torch.equal(zoo(recipe, keys=X).plan.dst, heads.plan.dst)
    assert torch.equal(zoo(recipe, keys=X[:, None]).plan.dst, heads.plan.dst)


def test_attention_is_computed_from_queries_and_keys_or_taken_as_given() -> None:
    queries, keys = draws(B, 2, N, 3, seed=1), draws(B, 2, N, 3, seed=2)
    attention = (queries @ keys.mT * 3**-0.5).softmax(-1)
    shown = {"queries": queries, "keys": keys, "prefix": 1}
    recipe = select(ReceivedAttention(), 3)
    received = attention.mean((1, 2))
    assert torch.equal(
        zoo(recipe, **shown).plan.keep, zoo(recipe, received_attention=received, prefix=1).plan.keep
    )
    recipe = select(CLSAttention(), 3)
    assert torch.equal(
        zoo(recipe, **shown).plan.keep,
        zoo(recipe, cls_attention=attention[:, :, 0], prefix=1).plan.keep,
    )
    given = torch.arange(N).float().expand(B, N)
    kept = zoo(select(ReceivedAttention(), 3), received_attention=given, **shown).plan.keep
    assert kept.tolist() == [[0, 6, 7, 8]] * 2  # what is given goes before what could be computed
    one_head = zoo(recipe, cls_attention=given, prefix=1).plan.keep
    assert one_head.tolist() == [[0, 6, 7, 8]] * 2


def test_what_is_not_needed_is_ignored() -> None:
    recipe = select(FeatureNorm())
    plain = zoo(recipe, prefix=1)
    more = zoo(
        recipe,
        prefix=1,
        keys=draws(B, 3, N, 5),
        queries=draws(B, 3, N, 5),
        received_attention=draws(B, N),
        cls_attention=draws(B, 3, N),
        last_attention=draws(B, 3, N),
        text=draws(B, 7, C),
        grid=(2, 4),
        frames=2,
        at={
            -2: {"keys": draws(B, N, 5)},
            "clip": {"x": draws(B, N, 11)},
            "text": {"x": draws(B, 3, C)},
        },
    )
    assert torch.equal(plain.x, more.x)
    assert torch.equal(plain.plan.dst, more.plan.dst)


def test_another_layer_decides_and_this_one_is_reduced() -> None:
    scores = torch.arange(N).float().expand(B, N)
    for layer in (-2, "clip"):
        reduced = zoo(select(CLSAttention(layer=layer), 3), at={layer: {"cls_attention": scores}})
        assert reduced.plan.keep.tolist() == [[6, 7, 8]] * 2
        assert torch.equal(reduced.x, X[:, 6:])
    wide = draws(B, N, 11)
    text = draws(B, 2, 11, seed=3)
    reduced = tokenzoo.build("cdpruner", keep=3, relevance="clip").reduce(
        X, text=text, at={"clip": {"x": wide}}
    )
    assert reduced.x.shape == (B, 3, C)


def test_attention_of_the_last_token_is_taken_as_given() -> None:
    given = torch.arange(N).float().expand(B, N)
    heads = torch.stack([given, given.flip(-1)], 1)
    for recipe, attention, kept in (
        (select(LastTokenAttention(), 3), given, [0, 6, 7, 8]),
        (select(LastTokenAttention("max"), 2), heads, [0, 1, 8]),
    ):
        assert zoo(recipe, last_attention=attention, prefix=1).plan.keep.tolist() == [kept] * 2


@pytest.mark.parametrize("t", [0, 1, 30])
def test_text_tokens_are_others_than_those_of_x(t: int) -> None:
    """As many as there are; the prefix is not cut off them, and none is lost where some are protected."""
    seen: list[Evidence] = []

    @dataclass(frozen=True)
    class Looks(Scorer):
        needs = frozenset({"x@text", "keys@text"})

        def score(self, evidence: Evidence) -> torch.Tensor:
            seen.append(evidence.at("text"))
            return evidence.x[..., 0]

    x, keys = draws(B, t, C, seed=1), draws(B, 2, t, 3, seed=2)
    at: dict[Any, Any] = {"text": {"x": x, "keys": keys}}
    zoo(select(Looks()), prefix=1, at=at)
    (text,) = seen
    assert torch.equal(text.x, x)
    assert torch.equal(text.keys, keys)
    assert text.mass.tolist() == [[1.0] * t] * B
    seen.clear()
    protected = torch.zeros(B, N, dtype=torch.bool)
    protected[:, [2, 5]] = True
    zoo(select(Looks()), prefix=1, at=at, protected=protected)
    assert torch.equal(torch.cat([text.x for text in seen]), x)  # one image at a time
    assert torch.equal(torch.cat([text.keys for text in seen]), keys)


# --------------------------------------------------------------------------------- protected


def test_protected_tokens_stay_as_they_are_and_others_make_room() -> None:
    protected = torch.zeros(B, N, dtype=torch.bool)
    protected[0, [2, 5]] = True
    protected[1, 7] = True  # another number in each image
    mass = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8, 9]] * 2)
    reduced = zoo(PAIRS, protected=protected, mass=mass, prefix=1)
    assert reduced.x.shape == (B, 7, C)
    reduced.plan.check()
    for i, tokens in enumerate(([0, 2, 5], [0, 7])):
        for token in tokens:
            slot = int(reduced.plan.dst[i, token])
            assert reduced.plan.keep[i, slot] == token
            assert int((reduced.plan.dst[i] == slot).sum()) == 1
            assert torch.equal(reduced.x[i, slot], X[i, token])
            assert reduced.mass[i, slot] == mass[i, token]
    assert bool((reduced.plan.keep.diff(dim=-1) > 0).all())


def test_protecting_is_the_recipe_on_the_others() -> None:
    protected = torch.zeros(1, 8, dtype=torch.bool)
    protected[0, [1, 6]] = True
    others = [0, 2, 3, 4, 5, 7]
    x = X[:1, 1:]
    whole = tokenzoo.build(PAIRS).reduce(x, protected=protected)
    alone = tokenzoo.build(PAIRS, keep=4).reduce(x[:, others])
    assert torch.equal(
        whole.plan.keep[0][~torch.isin(whole.plan.keep[0], torch.tensor([1, 6]))],
        torch.tensor(others)[alone.plan.keep[0]],
    )


def test_protected_tokens_are_still_asked_whom_they_attend_to() -> None:
    """Protection says who stays, not whose attention counts."""
    protected = torch.zeros(B, N, dtype=torch.bool)
    protected[:, 3] = True
    queries, keys = draws(B, 2, N, 3, seed=1), draws(B, 2, N, 3, seed=2)
    shown = {"queries": queries, "keys": keys, "prefix": 1}
    received = (queries @ keys.mT * 3**-0.5).softmax(-1).mean((1, 2))
    best = received[:, 1:].clone()
    best[:, 2] = -1
    expected = (best.topk(3).indices + 1).sort().values
    kept = zoo(select(ReceivedAttention(), 4), protected=protected, **shown).plan.keep
    for i in range(B):
        assert kept[i].tolist() == sorted([0, 3, *expected[i].tolist()])


def test_all_protected_is_the_identity() -> None:
    everything = torch.ones(B, N, dtype=torch.bool)
    reduced = tokenzoo.build(PAIRS, keep=8).reduce(X, protected=everything, prefix=1)
    assert torch.equal(reduced.x, X)
    assert torch.equal(reduced.plan.keep, torch.arange(N).expand(B, N))


def test_protecting_nothing_changes_nothing() -> None:
    nothing = torch.zeros(B, N, dtype=torch.bool)
    plain, other = zoo(PAIRS, prefix=1), zoo(PAIRS, prefix=1, protected=nothing)
    assert torch.equal(plain.x, other.x)
    assert torch.equal(plain.plan.dst, other.plan.dst)


# ---------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"keys": draws(B, N - 1, 3)}, ["keys", "(2, 8, 3)", "[b, N, d]", "N = 9"]),
        ({"keys": draws(1, N, 3)}, ["keys", "(1, 9, 3)", "b = 2"]),
        ({"keys": draws(B, N)}, ["keys", "(2, 9)", "[b, h, N, d]"]),
        ({"keys": [1, 2]}, ["keys", "tensor"]),
        ({"queries": draws(B, 2, N + 1, 3)}, ["queries", "(2, 2, 10, 3)", "[b, h, N, d]"]),
        (
            {"keys": draws(B, 2, N, 3), "queries": draws(B, 2, N, 4)},
            ["keys", "queries", "(2, 2, 9, 3)", "(2, 2, 9, 4)"],
        ),
        ({"received_attention": draws(B, 2, N)}, ["received_attention", "(2, 2, 9)", "[b, N]"]),
        ({"received_attention": draws(B, N - 1)}, ["received_attention", "(2, 8)", "[b, N]"]),
        ({"cls_attention": draws(B, 2, 8)}, ["cls_attention", "(2, 2, 8)", "[b, h, N]"]),
        ({"last_attention": draws(B, 2, 8)}, ["last_attention", "(2, 2, 8)", "[b, h, N]"]),
        ({"last_attention": torch.ones(B, N).long()}, ["last_attention", "torch.int64"]),
        ({"text": draws(B, C)}, ["text", "(2, 4)", "[b, t, c]"]),
        ({"text": draws(3, 1, C)}, ["text", "(3, 1, 4)", "b = 2"]),
        ({"grid": (2, 4)}, ["grid=(2, 4)", "8 places", "9 patch tokens"]),
        ({"grid": 9}, ["grid=9", "(rows, columns)"]),
        ({"grid": (3, 3, 1)}, ["grid=(3, 3, 1)", "(rows, columns)"]),
        ({"grid": (9.0, 1)}, ["grid=(9.0, 1)", "(rows, columns)"]),
        ({"grid": (-3, -3)}, ["grid=(-3, -3)", "(rows, columns)"]),
        ({"frames": 2}, ["frames=2", "divides the 9"]),
        ({"frames": 0}, ["frames=0", "divides the 9"]),
        ({"frames": True}, ["frames=True", "divides the 9"]),
        ({"frames": 3.0}, ["frames=3.0", "divides the 9"]),
        ({"mass": torch.ones(B, N - 1)}, ["mass", "(2, 8)", "(2, 9)"]),
        ({"mass": torch.zeros(B, N)}, ["mass", "<= 0"]),
        ({"mass": torch.full((B, N), torch.nan)}, ["mass", "positive"]),
        ({"mass": [1.0] * N}, ["mass", "tensor"]),
        ({"prefix": 9}, ["prefix=9", "0 to 8"]),
        ({"prefix": True}, ["prefix=True", "0 to 8"]),
        ({"prefix": 1.5}, ["prefix=1.5", "0 to 8"]),
        ({"protected": torch.ones(B, N)}, ["protected", "torch.float32", "torch.bool"]),
        ({"protected": torch.ones(B, N - 1).bool()}, ["protected", "(2, 8)", "(2, 9)"]),
        ({"protected": [True] * N}, ["protected", "bool"]),
        ({"at": {-2: {"value": X}}}, ["value", "cls_attention"]),
        ({"at": {-2: {"keys": draws(B, 3, 3)}}}, ["keys", "(2, 3, 3)"]),
        ({"at": {-2: {"x": draws(B, 3, 3)}}}, ["at[-2]['x']", "(2, 3, 3)", "(2, 9)"]),
        ({"at": {-2: X}}, ["at[-2]", "cls_attention"]),
        ({"at": {"text": {"keys": X}}}, ["at['text']['x']", "NoneType", "[b, t, c]"]),
        ({"at": {"text": {"x": draws(B, 3, 5)}}}, ["at['text']['x']", "(2, 3, 5)", "c = 4"]),
        ({"at": {"text": {"x": draws(1, 3, C)}}}, ["at['text']['x']", "(1, 3, 4)", "b = 2"]),
        ({"at": {"text": {"x": X.long()}}}, ["at['text']['x']", "torch.int64", "floating-point"]),
        (
            {"at": {"text": {"x": draws(B, 3, C), "keys": draws(B, 2, N, 3)}}},
            ["keys", "(2, 2, 9, 3)", "N = 3"],
        ),
        ({"at": 3}, ["at=3", "layer"]),
    ],
)
def test_bad_arguments(options: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(BadArgumentError) as caught:
        zoo(select(FeatureNorm()), **options)
    assert all(part in str(caught.value) for part in named), str(caught.value)


@pytest.mark.parametrize(
    ("x", "named"),
    [
        (X[0], ["(9, 4)", "x[None]"]),
        (X[..., None], ["(2, 9, 4, 1)", "x.flatten(1, 2)"]),
        (X[:, :0], ["(2, 0, 4)", "at least one token"]),
        ([[1.0]], ["x has shape list", "[batch, tokens, channels]"]),
    ],
)
def test_bad_tokens(x: Any, named: list[str]) -> None:
    with pytest.raises(BadArgumentError) as caught:
        tokenzoo.build("divprune").reduce(x)
    assert all(part in str(caught.value) for part in named), str(caught.value)


def test_text_of_another_width_names_both() -> None:
    with pytest.raises(BadArgumentError) as caught:
        tokenzoo.build("cdpruner").reduce(X, text=draws(B, 3, C + 1))
    assert "text" in str(caught.value)
    assert "5" in str(caught.value)
    assert "4" in str(caught.value)


def test_unknown_evidence_is_named_with_what_is_known() -> None:
    with pytest.raises(BadArgumentError) as caught:
        reduce(select(FeatureNorm()), X, value=X, masks=X)
    message = str(caught.value)
    assert "unknown evidence masks, value" in message
    for known in (
        "keys",
        "queries",
        "received_attention",
        "cls_attention",
        "last_attention",
        "text",
        "grid",
        "frames",
    ):
        assert known in message
    with pytest.raises(BadArgumentError, match="unknown evidence masks"):
        zoo(select(FeatureNorm()), masks=X)


@pytest.mark.parametrize(
    ("keep", "prefix", "named"),
    [
        (3, 1, ["keep=3 is 3 of 8", "Bipartite", "down to 4"]),
        (0.25, 0, ["keep=0.25 is 2 of 9", "Bipartite", "down to 5"]),
    ],
)
def test_how_far_one_step_goes(keep: int | float, prefix: int, named: list[str]) -> None:
    with pytest.raises(BudgetError) as caught:
        tokenzoo.build(PAIRS, keep=keep).reduce(X, prefix=prefix)
    assert isinstance(caught.value, BadArgumentError)
    assert all(part in str(caught.value) for part in named), str(caught.value)
    least = int(named[-1].split()[-1])
    assert tokenzoo.build(PAIRS, keep=least).reduce(X, prefix=prefix).x.shape[1] == least + prefix


def test_how_far_one_step_goes_with_protected_tokens() -> None:
    protected = torch.zeros(B, N, dtype=torch.bool)
    protected[:, [1, 2, 3]] = True
    with pytest.raises(BudgetError) as caught:
        tokenzoo.build(PAIRS, keep=5).reduce(X, prefix=1, protected=protected)
    message = str(caught.value)
    assert "keep=5 is 5 of 8 patch tokens, 3 of them protected" in message
    assert "down to 6" in message
    reduced = tokenzoo.build(PAIRS, keep=6).reduce(X, prefix=1, protected=protected)
    assert reduced.x.shape[1] == 7
    with pytest.raises(BudgetError, match="9 of them protected") as caught:
        tokenzoo.build(select(FeatureNorm(), 4)).reduce(X, protected=torch.ones(B, N).bool())
    assert "down to 9" in str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "missing", "advice"),
    [
        ("tome", ["keys"], ["keys=..."]),
        ("visionzip", ["cls_attention", "keys"], ["cls_attention=...", "keys=..."]),
        ("cdpruner", ["text"], ["text=..."]),
        ("uniform", ["grid"], ["grid=..."]),
    ],
)
def test_missing_evidence_is_named_with_what_is_there(
    recipe: str, missing: list[str], advice: list[str]
) -> None:
    with pytest.raises(MissingEvidenceError) as caught:
        tokenzoo.build(recipe, keep=6).reduce(X)
    message = str(caught.value)
    assert f"needs {', '.join(missing)}, and the tensors passed provide mass, x" in message
    assert all(part in message for part in advice), message


@pytest.mark.parametrize("layer", [-2, "clip"])
def test_the_advice_about_another_layer_can_be_followed(layer: int | str) -> None:
    recipe = select(CLSAttention(layer=layer))
    with pytest.raises(MissingEvidenceError) as caught:
        zoo(recipe)
    message = str(caught.value)
    assert f"needs cls_attention@{layer}" in message
    code = message.rpartition("pass at=")[2]
    at = eval(code.replace("...", "scores"), {"scores": draws(B, N)})
    assert zoo(recipe, at=at).x.shape == (B, 4, C)


def test_attention_needs_queries_and_keys() -> None:
    recipe = select(ReceivedAttention("patches"))
    with pytest.raises(MissingEvidenceError) as caught:
        zoo(recipe, keys=X)
    assert "queries=..., keys=..." in str(caught.value)
    assert zoo(recipe, keys=X, queries=X).x.shape == (B, 4, C)


def test_a_need_that_was_not_declared_is_an_error_that_says_so() -> None:
    @dataclass(frozen=True)
    class Sly(Scorer):
        def score(self, evidence: Evidence) -> torch.Tensor:
            return evidence.cls_attention.mean(1)

    with pytest.raises(MissingEvidenceError) as caught:
        zoo(select(Sly()))
    assert "provides no cls_attention; it provides mass, x" in str(caught.value)
    assert "needs = frozenset({'cls_attention'})" in str(caught.value)


def test_tensors_are_one_site() -> None:
    step = PAIRS.steps[0]
    last = Step(Stage.LLM, Once(), SelectAssign(Strided(), Drop()), Identity())
    with pytest.raises(BadArgumentError) as caught:
        zoo(Recipe(step, last))
    assert "2 steps" in str(caught.value)
    assert "recipe.steps[0]" in str(caught.value)


def test_a_schedule_that_fixes_what_goes_leaves_nothing_to_wish() -> None:
    with pytest.raises(BadArgumentError) as caught:
        tokenzoo.build("tome", r=2).reduce(X, keys=X)
    assert "keep=None" in str(caught.value)
    assert "pass keep=" in str(caught.value)


# --------------------------------------------------------------------------------- gradients


def test_gradients_reach_all_that_is_merged_and_scores_make_none() -> None:
    x = X.clone().requires_grad_()
    reduced = tokenzoo.build("evoprune", keep=6).reduce(x, keys=x, queries=x, prefix=1)
    (reduced.x * draws(*reduced.x.shape, seed=5)).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert bool((x.grad.abs().sum(-1) > 0).all())
    # Linear in x, with the weights of the plan: the scores of keys = x add nothing.
    weight = 1 / reduced.mass.gather(1, reduced.plan.dst)
    expected = reduced.unmerge(draws(*reduced.x.shape, seed=5)) * weight[..., None]
    torch.testing.assert_close(x.grad, expected)


def test_dropped_tokens_have_no_gradient() -> None:
    x = X.clone().requires_grad_()
    reduced = tokenzoo.build("divprune", keep=3).reduce(x)
    reduced.x.sum().backward()
    assert x.grad is not None
    assert torch.equal((x.grad.abs().sum(-1) > 0), reduced.plan.dst >= 0)


def test_a_part_that_learns_is_scored_with_gradients() -> None:
    seen: list[bool] = []

    @dataclass(frozen=True)
    class Watcher(Scorer):
        differentiable: bool = False

        def score(self, evidence: Evidence) -> torch.Tensor:
            seen.append(torch.is_grad_enabled())
            return evidence.x.square().sum(-1)

    protected = torch.zeros(B, N, dtype=torch.bool)
    for learns in (False, True):
        for options in ({}, {"protected": protected}):
            seen.clear()
            zoo(select(Watcher(learns)), **options)
            assert set(seen) == {learns}
    seen.clear()
    with torch.no_grad():
        zoo(select(Watcher(True)))
    assert seen == [False]


@pytest.mark.parametrize("name", tokenzoo.list_recipes())
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
def test_every_recipe_compiles(name: str) -> None:
    example, recipe = Example.drawn(), tokenzoo.build(name).recipe
    first = Recipe(recipe.steps[0], keep=0.6)

    at, shown = example.layers(first.needs), example.shown()

    def reduced(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = reduce(first, x, prefix=example.prefix, at=at, **shown)
        return found.x, found.plan.keep

    torch._dynamo.reset()
    compiled = torch.compile(reduced, fullgraph=True, backend="eager")(example.x)
    for found, expected in zip(compiled, reduced(example.x), strict=True):
        torch.testing.assert_close(found, expected)
