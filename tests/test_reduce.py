"""`reduce` on bare tensors: what it returns, what it ignores, and everything that it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_type_hints

import pytest
import torch

import tokenzoo
from tests.refusals import named, refused
from tokenzoo import Evidence, Recipe, Scorer, Stage, Step
from tokenzoo.errors import BadArgumentError, BudgetError, MissingEvidenceError, TokenzooError
from tokenzoo.evidence_inputs import EvidenceInputs
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
        *[[0, -1, 1, -1, 2, -1, 3, -1, -1], [0, 1, 2, 3, -1, -1, -1, -1, -1]]
    ]
    assert torch.equal(reduced.x[0], X[0, [0, 2, 4, 6]])
    assert torch.equal(reduced.mass, torch.ones(2, 4))
    y = reduced.unmerge(reduced.x, fill=-5)
    assert torch.equal(y[0, 4], X[0, 4])
    assert bool((y[0, 1] == -5).all())


KEYS = Recipe(Step(Stage.BLOCK, Once(), Bipartite(Similarity("keys")), WeightedMean()), keep=6)


RECIPES = {name: tokenzoo.build(name).recipe for name in tokenzoo.list_recipes()}
FIXED = [name for name, recipe in RECIPES.items() if not recipe.steps[0].matcher.ragged]


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("keep", [1.0, 12, 99])
def test_where_nothing_is_to_be_removed_x_comes_back_as_it_is(name: str, keep: int | float) -> None:
    recipe = Recipe(RECIPES[name].steps[0], keep=keep)
    example = Example.drawn(grid=(3, 4), prefix=1, dtype=torch.bfloat16)
    some = torch.arange(13).expand(2, 13) // 4 == 1
    for protected in (None,) if needs_all(recipe) else (None, some):
        out = example.reduce(recipe, protected=protected)
        assert torch.equal(out.x, example.x)
        assert torch.equal(out.mass, example.mass)
        assert out.plan.keep.tolist() == out.plan.dst.tolist() == [list(range(13))] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["evoprune", "divprune", "pool"])
def test_the_dtype_stays(name: str, dtype: torch.dtype) -> None:
    x = X.to(dtype)
    reduced = tokenzoo.build(name, keep=6).reduce(x, keys=x, queries=x, grid=(3, 3))
    assert (reduced.x.dtype, reduced.mass.dtype) == (dtype, torch.float32)
    assert reduced.x.shape == (B, 6, C)


def test_keys_of_one_head_are_keys() -> None:
    expected = zoo(PAIRS).plan.dst
    for keys in (X, X[:, None]):
        assert torch.equal(zoo(KEYS, keys=keys).plan.dst, expected)


def kept(recipe: Recipe, **shown: Any) -> list[list[int]]:
    return zoo(recipe, **shown).plan.keep.tolist()


RISING = torch.arange(N).float().expand(B, N)
HIGHEST = [[0, 6, 7, 8]] * B  # of three to keep, and one prefix token


@pytest.mark.parametrize(
    ("scorer", "name"),
    [
        (ReceivedAttention(), "received_attention"),
        (CLSAttention(), "cls_attention"),
        (LastTokenAttention(), "last_attention"),
    ],
)
def test_attention_is_taken_as_given(scorer: Scorer, name: str) -> None:
    """Also where it could be computed; one row of it is one head."""
    shown = {"queries": draws(B, 2, N, 3), "keys": draws(B, 2, N, 3, seed=1), "prefix": 1}
    assert kept(select(scorer, 3), **{name: RISING}, **shown) == HIGHEST


def test_attention_of_several_heads() -> None:
    heads = torch.stack([RISING, RISING.flip(-1)], 1)
    recipe = select(LastTokenAttention("max"), 2)
    assert kept(recipe, last_attention=heads, prefix=1) == [[0, 1, 8]] * B


def test_attention_is_computed_from_queries_and_keys() -> None:
    queries, keys = draws(B, 2, N, 3, seed=1), draws(B, 2, N, 3, seed=2)
    attention = (queries @ keys.mT * 3**-0.5).softmax(-1)
    for scorer, given in (
        (ReceivedAttention(), {"received_attention": attention.mean((1, 2))}),
        (CLSAttention(), {"cls_attention": attention[:, :, 0]}),
    ):
        recipe = select(scorer, 3)
        computed = kept(recipe, queries=queries, keys=keys, prefix=1)
        assert computed == kept(recipe, **given, prefix=1)


def test_what_is_not_needed_is_ignored() -> None:
    example, recipe = Example.drawn(), select(FeatureNorm())
    at = example.layers(frozenset({"keys@-2", "x@clip", "x@text", "keys@text"}))
    plain = reduce(recipe, example.x, prefix=1)
    more = reduce(recipe, example.x, prefix=1, at=at, **example.shown())
    assert torch.equal(plain.x, more.x)
    assert torch.equal(plain.plan.dst, more.plan.dst)


@pytest.mark.parametrize("layer", [-2, "clip"])
def test_another_layer_decides_and_this_one_is_reduced(layer: int | str) -> None:
    """Without it, the error has the code that passes it."""
    recipe = select(CLSAttention(layer=layer), 3)
    with pytest.raises(MissingEvidenceError, match=f"needs cls_attention@{layer}") as caught:
        zoo(recipe)
    code = str(caught.value).rpartition("pass at=")[2]
    reduced = zoo(recipe, at=eval(code.replace("...", "scores"), {"scores": RISING}))
    assert reduced.plan.keep.tolist() == [[6, 7, 8]] * B
    assert torch.equal(reduced.x, X[:, 6:])


@pytest.mark.parametrize("protected", [False, True])
@pytest.mark.parametrize("t", [0, 1, 30])
def test_text_tokens_are_others_than_those_of_x(t: int, protected: bool) -> None:
    """As many as there are: the prefix is not cut off them, and protecting some of x loses none."""
    seen: list[Evidence] = []

    @dataclass(frozen=True)
    class Looks(Scorer):
        needs = frozenset({"x@text", "keys@text"})

        def score(self, evidence: Evidence) -> torch.Tensor:
            seen.append(evidence.at("text"))
            return evidence.x[..., 0]

    x, keys = draws(B, t, C, seed=1), draws(B, 2, t, 3, seed=2)
    held = torch.zeros(B, N, dtype=torch.bool)
    held[:, [2, 5]] = protected
    at: dict[Any, Any] = {"text": {"x": x, "keys": keys}}
    zoo(select(Looks()), prefix=1, at=at, protected=held if protected else None)
    assert len(seen) == (B if protected else 1)  # with protected tokens one image at a time
    assert torch.equal(torch.cat([text.x for text in seen]), x)
    assert torch.equal(torch.cat([text.keys for text in seen]), keys)
    assert torch.equal(torch.cat([text.mass for text in seen]), torch.ones(B, t))


# --------------------------------------------------------------------------------- protected


def protecting(*tokens: int) -> torch.Tensor:
    """In every image these."""
    return torch.zeros(B, N, dtype=torch.bool).index_fill(1, torch.tensor(tokens).long(), True)


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
    queries, keys = draws(B, 2, N, 3, seed=1), draws(B, 2, N, 3, seed=2)
    received = (queries @ keys.mT * 3**-0.5).softmax(-1).mean((1, 2))
    best = received.index_fill(1, torch.tensor([0, 3]), -1).topk(3).indices
    shown = {"queries": queries, "keys": keys, "prefix": 1, "protected": protecting(3)}
    assert kept(select(ReceivedAttention(), 4), **shown) == [
        sorted([0, 3, *row]) for row in best.tolist()
    ]


def test_protecting_nothing_changes_nothing() -> None:
    plain, other = zoo(PAIRS, prefix=1), zoo(PAIRS, prefix=1, protected=protecting())
    assert torch.equal(plain.x, other.x)
    assert torch.equal(plain.plan.dst, other.plan.dst)


# ---------------------------------------------------------------------------------- refusals

# Values that an argument cannot have: the message names it and them.
VALUES: dict[str, tuple[Any, ...]] = {
    "keys": (draws(B, N - 1, 3), draws(1, N, 3), draws(B, N), draws(B, N, 3).long()),
    "queries": (draws(B, 2, N + 1, 3),),
    "received_attention": (draws(B, 2, N), draws(B, N - 1)),
    "cls_attention": (draws(B, 2, 8),),
    "last_attention": (draws(B, 2, 8), torch.ones(B, N).long()),
    "text": (draws(B, C), draws(3, 1, C)),
    "grid": ((2, 4), 9, (3, 3, 1), (9.0, 1), (-3, -3)),
    "frames": (2, 0, True, 3.0),
    "prefix": (9, True, 1.5, -1),
    "mass": (torch.ones(B, N - 1), torch.ones(B, N, 1)),
    "protected": (torch.ones(B, N - 1).bool(), torch.ones(B, N)),
    "at": ([X],),
}


@pytest.mark.parametrize("name", VALUES)
def test_bad_values(name: str) -> None:
    method = tokenzoo.build("cdpruner" if name == "text" else select(FeatureNorm()))
    for value in VALUES[name]:
        words = named(name, value) if name != "protected" else (name, "torch.bool")
        words = (name, str(value.dtype)) if getattr(value, "dtype", None) == torch.int64 else words
        refused(lambda value=value: method.reduce(X, **{name: value}), *words)


OTHER_LAYERS = [
    (3, "at=3"),
    ({1.5: {}}, "1.5", "a name"),
    ({-2: X}, "at[-2]"),
    ({-2: 3}, "at[-2]"),
    ({-2: {"value": X}}, "value"),
    ({-2: {3: X}}, "3"),
    ({-2: {"keys": draws(B, 3, 3)}}, "keys", "(2, 3, 3)"),
    ({-2: {"x": draws(B, 3, 3)}}, "at[-2]['x']", "(2, 3, 3)"),
    ({"text": {"keys": X}}, "at['text']['x']", "NoneType"),
    ({"text": {"x": draws(B, 3, 5)}}, "at['text']['x']", "(2, 3, 5)", "c = 4"),
    ({"text": {"x": draws(1, 3, C)}}, "at['text']['x']", "(1, 3, 4)", "b = 2"),
    ({"text": {"x": X.long()}}, "at['text']['x']", "torch.int64"),
    ({"text": {"x": draws(B, 3, C), "keys": X}}, "keys", "(2, 9, 4)", "N = 3"),
]


@pytest.mark.parametrize(("at", "words"), [(at, words) for at, *words in OTHER_LAYERS])
def test_bad_evidence_of_another_layer(at: Any, words: list[str]) -> None:
    recipe = select(FeatureNorm())
    refused(lambda: zoo(recipe, at=at), *words)
    refused(lambda: zoo(recipe, at=at, protected=protecting()), words[0])  # image by image


@dataclass(frozen=True)
class Sly(Scorer):
    """Does not say what it needs."""

    def score(self, evidence: Evidence) -> torch.Tensor:
        return evidence.cls_attention.mean(1)


TWO_STEPS = Recipe(
    PAIRS.steps[0], Step(Stage.LLM, Once(), SelectAssign(Strided(), Drop()), Identity())
)
# The class of the error; a recipe, x, what is shown besides, and what the message names.
REFUSALS: dict[type[TokenzooError], list[tuple[Any, ...]]] = {
    BadArgumentError: [
        ("divprune", X[0], {}, "(9, 4)", "x[None]"),
        ("divprune", X[..., None], {}, "(2, 9, 4, 1)", "x.flatten(1, 2)"),
        ("divprune", X[:, :0], {}, "(2, 0, 4)"),
        ("divprune", [[1.0]], {}, "x has shape list"),
        ("divprune", X.long(), {}, "torch.int64"),
        ("tome", X, {"keys": X.to("meta")}, "keys"),
        ("tome", X, {"keys": X[:, None], "queries": X[:, None, :, :3]}, "(2, 1, 9, 3)"),
        ("ats", X, {"values": draws(B, 2, N, C), "cls_attention": draws(B, 3, N)}, "3 heads"),
        *(
            ("divprune", X, {"mass": mass}, "mass")
            for mass in (torch.full((B, N), value) for value in (0.0, -1.0, torch.nan, torch.inf))
        ),
        ("divprune", X, {"value": X, "masks": X}, "masks, value", *get_type_hints(EvidenceInputs)),
        ("cdpruner", X, {"text": draws(B, 3, C + 1)}, "text has 5", "4", "at="),
        ("cdpruner", X, {"text": "a dog"}, "text has shape str"),
        (TWO_STEPS, X, {}, "2 steps", "recipe.steps[0]"),
        (tokenzoo.build("tome", r=2).recipe, X, {"keys": X}, "keep=None", "pass keep="),
    ],
    MissingEvidenceError: [
        ("tome", X, {}, "needs keys", "provide mass, x", "keys=..."),
        ("visionzip", X, {}, "cls_attention=...", "keys=..."),
        ("cdpruner", X, {}, "text=..."),
        ("uniform", X, {}, "grid=..."),
        ("pool", X, {"grid": (3, 3), "protected": protecting(1)}, "without protected="),
        (select(ReceivedAttention("patches")), X, {"keys": X}, "queries=..., keys=..."),
        (select(Sly()), X, {}, "provides no cls_attention", "frozenset({'cls_attention'})"),
    ],
}


@pytest.mark.parametrize(
    ("kind", "recipe", "x", "shown", "words"),
    [(kind, *row[:3], row[3:]) for kind, rows in REFUSALS.items() for row in rows],
)
def test_refusals(kind: type[TokenzooError], recipe: Any, x: Any, shown: Any, words: Any) -> None:
    keep = {"keep": 6} if isinstance(recipe, str) else {}
    refused(lambda: tokenzoo.build(recipe, **keep).reduce(x, **shown), *words, kind=kind)


@pytest.mark.parametrize(
    ("recipe", "keep", "shown", "words", "fewest"),
    [
        (PAIRS, 3, {"prefix": 1}, ["keep=3 is 3 of 8", "Bipartite"], 4),
        (PAIRS, 0.25, {}, ["keep=0.25 is 2 of 9", "Bipartite"], 5),
        (PAIRS, 5, {"prefix": 1, "protected": protecting(1, 2, 3)}, ["5 of 8", "3 of them"], 6),
        (select(FeatureNorm()), 4, {"protected": protecting(*range(N))}, ["9 of them"], 9),
    ],
)
def test_how_far_one_step_goes(
    recipe: Recipe, keep: Any, shown: dict[str, Any], words: list[str], fewest: int
) -> None:
    zoo = tokenzoo.build(recipe, keep=keep)
    refused(lambda: zoo.reduce(X, **shown), *words, f"down to {fewest}", kind=BudgetError)
    reduced = tokenzoo.build(recipe, keep=fewest).reduce(X, **shown)
    assert reduced.x.shape[1] == fewest + shown.get("prefix", 0)


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


@pytest.mark.parametrize("protected", [None, protecting()])
@pytest.mark.parametrize(("learns", "enabled"), [(False, True), (True, True), (True, False)])
def test_a_part_that_learns_is_scored_with_gradients(
    learns: bool, enabled: bool, protected: torch.Tensor | None
) -> None:
    seen: set[bool] = set()

    @dataclass(frozen=True)
    class Watcher(Scorer):
        differentiable: bool = False

        def score(self, evidence: Evidence) -> torch.Tensor:
            seen.add(torch.is_grad_enabled())
            return evidence.x.square().sum(-1)

    with torch.set_grad_enabled(enabled):
        zoo(select(Watcher(learns)), protected=protected)
    assert seen == {learns and enabled}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
def test_every_recipe_compiles(name: str) -> None:
    example, first = Example.drawn(), Recipe(RECIPES[name].steps[0], keep=0.6)
    at, shown = example.layers(first.needs), example.shown()

    def reduced(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = reduce(first, x, prefix=example.prefix, at=at, **shown)
        return found.x, found.plan.keep

    torch._dynamo.reset()
    compiled = torch.compile(reduced, fullgraph=True, backend="eager")(example.x)
    torch.testing.assert_close(compiled, reduced(example.x))
