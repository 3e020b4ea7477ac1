"""Scorers against their formulas, their refusals, and how they combine."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from tests.mutants import LikesNaN
from tokenzoo.affinity import Elementwise, Exp, Linear
from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence
from tokenzoo.kernels import neighbour_density
from tokenzoo.parts import Discount, PairScorer, Scorer, Sum
from tokenzoo.scorers import (
    CLSAttention,
    Diversity,
    FeatureNorm,
    LastTokenAttention,
    Random,
    ReceivedAttention,
    Similarity,
    TextRelevance,
    TextSoftmax,
)
from tokenzoo.testing.strategies import Example

EXAMPLE = Example.drawn(images=2, grid=(3, 4), prefix=1, heads=3, width=4, channels=5)
LAYERS = frozenset({"x@clip", "cls_attention@-2"})
EVIDENCE = EXAMPLE.evidence(LAYERS)

ALL_TOKEN_SCORERS: list[Scorer] = [
    ReceivedAttention(),
    ReceivedAttention("patches"),
    ReceivedAttention(by_mass=True),
    CLSAttention(),
    CLSAttention("max", layer=-2),
    LastTokenAttention(),
    LastTokenAttention("max"),
    FeatureNorm(),
    FeatureNorm("all_keys"),
    FeatureNorm("all_keys", power=1),
    Diversity(),
    Diversity("x", k=2, tau=0.5),
    Random(3),
    TextRelevance(),
    TextRelevance("clip", negated=False),
    FeatureNorm().normalized("minmax"),
    FeatureNorm().normalized("rank"),
    FeatureNorm().normalized("zscore"),
    FeatureNorm().normalized() + 0.5 * CLSAttention().normalized("rank"),
]


@pytest.mark.parametrize("scorer", ALL_TOKEN_SCORERS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scores_are_one_number_a_token_in_full_precision(
    scorer: Scorer, dtype: torch.dtype
) -> None:
    example = Example.drawn(images=2, grid=(3, 4), dtype=dtype)
    scores = scorer.score(example.evidence(LAYERS))
    assert scores.shape == (2, 12)
    assert scores.dtype in (torch.float32, torch.float64)
    assert bool(scores.isfinite().all())


def test_norms() -> None:
    x, keys = EVIDENCE.x, EVIDENCE.keys
    torch.testing.assert_close(FeatureNorm().score(EVIDENCE), x.norm(dim=-1))
    torch.testing.assert_close(FeatureNorm("keys").score(EVIDENCE), keys.mean(1).norm(dim=-1))
    torch.testing.assert_close(FeatureNorm("all_keys").score(EVIDENCE), keys.norm(dim=(1, 3)))
    queries = EVIDENCE.queries.mean(1).norm(dim=-1)
    torch.testing.assert_close(FeatureNorm("queries").score(EVIDENCE), queries)
    torch.testing.assert_close(
        FeatureNorm("all_keys", power=1).score(EVIDENCE), keys.abs().sum((1, 3))
    )
    half = Example.drawn(grid=(1, 2), width=64, dtype=torch.bfloat16).evidence()
    summed = half.keys.double().abs().sum((1, 3))  # 2^-8 of it would be lost in bfloat16
    torch.testing.assert_close(FeatureNorm("all_keys", power=1).score(half), summed)


@pytest.mark.parametrize("part", [CLSAttention, LastTokenAttention])
def test_one_tokens_attention_over_heads(part: type[CLSAttention | LastTokenAttention]) -> None:
    last = part is LastTokenAttention
    attention = EVIDENCE.last_attention if last else EVIDENCE.cls_attention
    torch.testing.assert_close(part().score(EVIDENCE), attention.mean(1))
    torch.testing.assert_close(part("sum").score(EVIDENCE), attention.sum(1))
    torch.testing.assert_close(part("max").score(EVIDENCE), attention.amax(1))


def test_received_attention_is_what_is_shown_or_what_is_seen() -> None:
    seen = EVIDENCE.attention
    assert ReceivedAttention().score(EVIDENCE) is EVIDENCE.received_attention
    for queries in ("all", "patches"):
        for by_mass in (False, True):
            if (queries, by_mass) == ("all", False):
                continue
            expected = seen.received(queries, EVIDENCE.mass if by_mass else None)
            found = ReceivedAttention(queries, by_mass).score(EVIDENCE)
            assert torch.equal(found, expected)
    mass = EVIDENCE.mass
    found = ReceivedAttention("patches", by_mass=True, stride=2).score(EVIDENCE)
    assert torch.equal(found, seen.received("patches", mass, 2))
    assert not torch.allclose(found, seen.received("patches", mass))


def test_another_layer_is_asked_for_by_name() -> None:
    other = EXAMPLE.scaled(2.0)
    layered = EXAMPLE.evidence(LAYERS)
    layered = type(layered)(
        layered.x, mass=layered.mass, layers={-2: other.evidence(), "clip": other.evidence()}
    )
    assert torch.equal(
        CLSAttention(layer=-2).score(layered), CLSAttention().score(other.evidence())
    )
    assert torch.equal(
        ReceivedAttention(layer="clip").score(layered),
        ReceivedAttention().score(other.evidence()),
    )


@pytest.mark.parametrize(
    ("scorer", "needs"),
    [
        (ReceivedAttention(), {"received_attention"}),
        (ReceivedAttention("patches"), {"attention"}),
        (ReceivedAttention(by_mass=True), {"attention"}),
        (ReceivedAttention(stride=4), {"attention"}),
        (ReceivedAttention(layer=-2), {"received_attention@-2"}),
        (ReceivedAttention("patches", layer=3), {"attention@3"}),
        (CLSAttention(), {"cls_attention"}),
        (CLSAttention(layer="clip"), {"cls_attention@clip"}),
        (LastTokenAttention(), {"last_attention"}),
        (LastTokenAttention(layer=3), {"last_attention@3"}),
        (FeatureNorm(), {"x"}),
        (FeatureNorm("all_keys"), {"keys"}),
        (Diversity("queries"), {"queries"}),
        (Random(), set()),
        (TextRelevance(), {"text", "x"}),
        (TextRelevance("clip"), {"text", "x@clip"}),
        (Similarity("all_keys"), {"keys"}),
    ],
)
def test_needs_follow_from_the_options(scorer: Scorer | PairScorer, needs: set[str]) -> None:
    assert scorer.needs == needs


def test_diversity_is_one_minus_density() -> None:
    for tau in (None, 0.7):
        density = neighbour_density(EVIDENCE.keys.mean(1), 3, tau)
        found = Diversity("keys", k=3, tau="image" if tau is None else tau).score(EVIDENCE)
        torch.testing.assert_close(found, 1 - density)


@pytest.mark.parametrize("negated", [True, False])
def test_text_relevance_is_the_scaled_mean_cosine(negated: bool) -> None:
    x, text = EVIDENCE.x, EVIDENCE.text
    cosine = torch.cosine_similarity(x[:, :, None], text[:, None], dim=-1).mean(-1)
    relevance = -cosine if negated else cosine
    low, high = relevance.amin(-1, keepdim=True), relevance.amax(-1, keepdim=True)
    found = TextRelevance(negated=negated).score(EVIDENCE)
    torch.testing.assert_close(found, (relevance - low) / (high - low), atol=1e-5, rtol=0)
    assert bool((found > 0).all())
    flat = Example.drawn(kind="equal").evidence()
    assert bool((TextRelevance().score(flat) > 0).all())


@pytest.mark.parametrize("scorer", [TextRelevance(), TextSoftmax()], ids=repr)
def test_padding_of_a_text_does_not_count(scorer: Scorer) -> None:
    """Texts of different lengths in a batch: each image's scores are those with its own text alone."""
    junk = torch.full((2, 3, 5), torch.nan)
    text = torch.cat([EVIDENCE.text, junk.to(EVIDENCE.text)], 1)  # [b, t + 3, c]
    mask = torch.tensor([[True, True, False, False, False], [True, False, False, False, False]])
    found = scorer.score(EVIDENCE.with_text(text, mask))
    for row, words in enumerate((2, 1)):
        alone = Evidence(EVIDENCE.x[row : row + 1], mass=EVIDENCE.mass[row : row + 1])
        own, every = EVIDENCE.text[row : row + 1, :words], torch.ones(1, words, dtype=torch.bool)
        assert torch.equal(scorer.score(alone.with_text(own, every))[0], found[row])


def test_random_scores_are_a_function_of_seed_position_and_count() -> None:
    scores = Random(5).score(EVIDENCE)
    other = Example.drawn(images=3, grid=(3, 4), seed=99, dtype=torch.float32).evidence()
    assert torch.equal(Random(5).score(other), scores[:1].expand(3, 12))
    assert not torch.equal(Random(6).score(EVIDENCE), scores)
    many = torch.cat(
        [
            Random(seed).score(Example.drawn(images=1, grid=(20, 20)).evidence())
            for seed in range(20)
        ]
    ).flatten()
    assert 0 <= many.min() < 0.01
    assert 0.99 < many.max() < 1
    histogram = torch.histc(many, 10, 0, 1) / len(many)
    assert bool((histogram - 0.1).abs().max() < 0.02)
    neighbours = torch.stack([many[:-1], many[1:]]).corrcoef()[0, 1]
    assert abs(neighbours) < 0.05


@pytest.mark.parametrize("on", ["x", "keys", "queries", "all_keys"])
def test_similarities_are_functions_of_the_cosine(on: str) -> None:
    features = EVIDENCE.features(on)
    cosine = torch.cosine_similarity(features[:, :, None], features[:, None], dim=-1)
    expected = {
        "cosine": cosine,
        "nonnegative": (1 + cosine) / 2,
        "exp": (2.5 * cosine).exp(),
        "sigmoid": 1 / (1 + (-2.5 * cosine).exp()),
    }
    for curve, dense in expected.items():
        affinity = Similarity(on, curve, 2.5).score(EVIDENCE)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(affinity.dense(), dense)
    assert Similarity(on).nonnegative() == Similarity(on, "nonnegative")


def test_curves_of_similarities() -> None:
    kinds = {"cosine": Linear, "nonnegative": Linear, "exp": Exp, "sigmoid": Elementwise}
    for curve, kind in kinds.items():
        affinity = Similarity("x", curve).score(EVIDENCE)  # pyright: ignore[reportArgumentType]
        assert type(affinity.curve) is kind


# -------------------------------------------------------------------------------- combinations


@pytest.mark.parametrize("on", ["source", "target", "both"])
def test_a_discount_weighs_pairs_by_how_little_their_tokens_are_worth(on: str) -> None:
    by = FeatureNorm().discount(0.3, on)  # pyright: ignore[reportArgumentType]
    pairs = Similarity("x").nonnegative()
    weight = (-0.3 * EVIDENCE.x.norm(dim=-1)).exp()
    expected = pairs.score(EVIDENCE).dense()
    if on != "target":
        expected = expected * weight[:, :, None]
    if on != "source":
        expected = expected * weight[:, None]
    torch.testing.assert_close((pairs * by).score(EVIDENCE).dense(), expected)
    twice = pairs * by * FeatureNorm().discount(0.3, on)  # pyright: ignore[reportArgumentType]
    assert twice.score(EVIDENCE).dense().shape == expected.shape


def test_normalized_scores() -> None:
    raw = EVIDENCE.x.norm(dim=-1)
    minmax = FeatureNorm().normalized().score(EVIDENCE)
    assert torch.equal(minmax.amin(-1), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(minmax.amax(-1), torch.ones(2, dtype=torch.float64))
    zscore = FeatureNorm().normalized("zscore").score(EVIDENCE)
    torch.testing.assert_close(zscore.mean(-1), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(zscore.square().mean(-1), torch.ones(2, dtype=torch.float64))
    rank = FeatureNorm().normalized("rank").score(EVIDENCE)
    torch.testing.assert_close(rank.sort(-1).values[0], torch.linspace(0, 1, 12).double())
    for scaled in (minmax, zscore, rank):
        assert torch.equal(scaled.argsort(-1), raw.argsort(-1))


@pytest.mark.parametrize("how", ["minmax", "rank", "zscore"])
def test_normalized_scores_of_equal_tokens_and_of_one(how: str) -> None:
    for example in (Example.drawn(kind="equal"), EXAMPLE.alone()):
        scores = FeatureNorm().normalized(how).score(example.evidence())  # pyright: ignore[reportArgumentType]
        assert bool(scores.isfinite().all())
        # Equal scores are a tie, and ties go to the lower index.
        assert bool((scores.diff(dim=-1) <= 1e-6).all())


@pytest.mark.parametrize("how", ["minmax", "rank", "zscore"])
def test_a_nan_does_not_touch_the_scale_of_the_others(how: str) -> None:
    bad = EXAMPLE.poisoned([2]).evidence()
    scores = FeatureNorm().normalized(how).score(bad)  # pyright: ignore[reportArgumentType]
    others = [0, 1, *range(3, 12)]
    assert bool(scores[:, others].isfinite().all())
    left = bad.x[:, others].norm(dim=-1)
    assert torch.equal(scores[:, others].argsort(-1), left.argsort(-1))
    last = scores.nan_to_num(nan=-math.inf).argmin(-1)
    assert last.tolist() == [2, 2]


def test_sums_of_normalized_scores() -> None:
    one, other = FeatureNorm().normalized("rank"), CLSAttention().normalized()
    total = 2 * one + other * 0.5 + (one + other)
    assert isinstance(total, Sum)
    assert len(total.terms) == 4
    first, second = one.score(EVIDENCE), other.score(EVIDENCE)
    torch.testing.assert_close(total.score(EVIDENCE), 3 * first + 1.5 * second)


# --------------------------------------------------------------------------------- refusals

NOT_NUMBERS = ("a", None, [1])


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: FeatureNorm("values"), ["on='values'", "'x'", "'all_keys'"]),
        (lambda: Diversity("values"), ["on='values'", "'x'", "'all_keys'"]),
        (lambda: Similarity("values"), ["on='values'", "'x'", "'all_keys'"]),
        (lambda: FeatureNorm(["x"]), ["on=['x']", "'x'"]),
        (lambda: CLSAttention("median"), ["heads='median'", "'mean'", "'max'"]),
        (lambda: LastTokenAttention("median"), ["heads='median'", "'mean'", "'max'"]),
        (lambda: FeatureNorm(power=3), ["power=3", "1 or 2"]),
        (lambda: FeatureNorm(power=True), ["power=True", "1 or 2"]),
        (lambda: ReceivedAttention("cls"), ["queries='cls'", "'all'", "'patches'"]),
        (lambda: ReceivedAttention(stride=0), ["stride=0", "1"]),
        (lambda: Similarity(curve="tanh"), ["curve='tanh'", "'cosine'", "'sigmoid'"]),
        *[
            (lambda beta=beta: Similarity(beta=beta), [f"beta={beta!r}", "> 0"])
            for beta in (0, -1.0, math.inf, math.nan, True, *NOT_NUMBERS)
        ],
        *[
            (lambda k=k: Diversity(k=k), [f"k={k!r}", "int >= 1"])
            for k in (0, -3, True, 2.5, *NOT_NUMBERS)
        ],
        *[
            (lambda tau=tau: Diversity(tau=tau), [f"tau={tau!r}", "> 0", "'image'"])
            for tau in (0, -1.0, math.inf, math.nan, "images", True, None)
        ],
        *[
            (lambda seed=seed: Random(seed), [f"seed={seed!r}", "0 to 2**31 - 1"])
            for seed in (-1, 2**31, True, 1.5, *NOT_NUMBERS)
        ],
        *[
            (lambda lam=lam: FeatureNorm().discount(lam), [f"lam={lam!r}", ">= 0"])
            for lam in (-0.1, math.inf, math.nan, True, *NOT_NUMBERS)
        ],
        (lambda: FeatureNorm().discount(1.0, "left"), ["on='left'", "'source'", "'both'"]),
        (lambda: FeatureNorm().normalized("softmax"), ["how='softmax'", "'minmax'", "'zscore'"]),
    ],
)
def test_bad_options(make: Callable[[], object], named: list[str]) -> None:
    with pytest.raises(BadArgumentError) as caught:
        make()
    assert all(part in str(caught.value) for part in named), str(caught.value)


@pytest.mark.parametrize(
    ("combine", "named"),
    [
        (lambda a, p: a * p, ["FeatureNorm * Similarity", ".discount(lam)", "Similarity *"]),
        (lambda a, p: p * a, ["Similarity * FeatureNorm", ".discount(lam)"]),
        (lambda a, p: a * a.discount(1.0), ["FeatureNorm * Discount", ".discount(lam)"]),
        (lambda a, p: p * 2, ["Similarity * 2", ".discount(lam)"]),
        (lambda a, p: p * p, ["Similarity * Similarity", ".discount(lam)"]),
        (lambda a, p: a * 2, ["FeatureNorm * 2", ".normalized('minmax')"]),
        (lambda a, p: 2 * a, ["FeatureNorm * 2", ".normalized('minmax')"]),
        (lambda a, p: a + a, ["FeatureNorm", ".normalized('minmax')"]),
        (lambda a, p: a + 1, ["FeatureNorm", ".normalized('minmax')"]),
        (lambda a, p: a.normalized() * True, ["Normalized * True", "number"]),
        (lambda a, p: a.normalized() + a, ["Sum", ".normalized('minmax')"]),
        (lambda a, p: a + a.normalized(), ["FeatureNorm", ".normalized('minmax')"]),
        (lambda a, p: (a.normalized() + a.normalized()) + a, ["Sum", ".normalized('minmax')"]),
    ],
)
def test_scores_that_have_no_common_scale(
    combine: Callable[[Scorer, PairScorer], object], named: list[str]
) -> None:
    with pytest.raises(BadArgumentError) as caught:
        combine(FeatureNorm(), Similarity("x"))
    assert all(part in str(caught.value) for part in named), str(caught.value)


def test_what_multiplies_a_pair_score_is_a_discount() -> None:
    by = LikesNaN().discount(0.5)
    assert isinstance(by, Discount)
    assert (Similarity("x") * by).by is by
