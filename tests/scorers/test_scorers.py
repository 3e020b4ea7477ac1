"""Scorers against their formulas, and how they combine."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch

import tokenzoo
from tests.matchers.sites import draws, site
from tokenzoo.affinity import Elementwise, Exp, Linear
from tokenzoo.errors import BadArgumentError, MissingEvidenceError
from tokenzoo.evidence import Evidence
from tokenzoo.kernels import neighbour_density
from tokenzoo.parts import PairScorer, Scorer
from tokenzoo.scorers import (
    CLSAttention,
    DensityPeak,
    Diversity,
    FeatureChange,
    FeatureNorm,
    GraphEnergy,
    GraphFlow,
    LastTokenAttention,
    MeanLogits,
    NegativeSquaredDistance,
    Random,
    ReceivedAttention,
    Similarity,
    TextAttention,
    TextRelevance,
    TextSoftmax,
    ValueWeighted,
    attention_by,
)
from tokenzoo.testing.strategies import Example

EXAMPLE = Example.drawn(images=2, grid=(3, 4), prefix=1, heads=3, width=4, channels=6)
SEEN = EXAMPLE.evidence(frozenset({"x@clip", "cls_attention@-2"}))
N = 12
close = torch.testing.assert_close


def test_norms() -> None:
    x, keys = SEEN.x, SEEN.keys
    close(FeatureNorm().score(SEEN), x.norm(dim=-1))
    close(FeatureNorm("keys").score(SEEN), keys.mean(1).norm(dim=-1))
    close(FeatureNorm("all_keys").score(SEEN), keys.norm(dim=(1, 3)))
    close(FeatureNorm("queries").score(SEEN), SEEN.queries.mean(1).norm(dim=-1))
    close(FeatureNorm("all_keys", power=1).score(SEEN), keys.abs().sum((1, 3)))
    half = Example.drawn(grid=(1, 2), width=64, dtype=torch.bfloat16).evidence()
    summed = half.keys.double().abs().sum((1, 3))  # 2^-8 of it would be lost in bfloat16
    close(FeatureNorm("all_keys", power=1).score(half), summed)


@pytest.mark.parametrize("part", [CLSAttention, LastTokenAttention])
def test_one_tokens_attention_over_heads(part: type[CLSAttention | LastTokenAttention]) -> None:
    shown = SEEN.last_attention if part is LastTokenAttention else SEEN.cls_attention
    close(part().score(SEEN), shown.mean(1))
    close(part("sum").score(SEEN), shown.sum(1))
    close(part("max").score(SEEN), shown.amax(1))


def test_received_attention_is_what_is_shown_or_what_is_seen() -> None:
    seen, mass = SEEN.attention, SEEN.mass
    assert ReceivedAttention().score(SEEN) is SEEN.received_attention
    for part, wanted in (
        (ReceivedAttention("patches"), seen.received("patches", None)),
        (ReceivedAttention(by_mass=True), seen.received("all", mass)),
        (ReceivedAttention("patches", by_mass=True), seen.received("patches", mass)),
        (ReceivedAttention("patches", by_mass=True, stride=2), seen.received("patches", mass, 2)),
    ):
        assert torch.equal(part.score(SEEN), wanted)
    assert not torch.allclose(seen.received("patches", mass, 2), seen.received("patches", mass))


@pytest.mark.parametrize("part", [CLSAttention(), ReceivedAttention(), LastTokenAttention()])
def test_another_layer_is_asked_for_by_name(part: CLSAttention) -> None:
    other = EXAMPLE.backwards().evidence()
    layered = Evidence(SEEN.x, mass=SEEN.mass, layers={"clip": other})
    assert torch.equal(replace(part, layer="clip").score(layered), part.score(other))


@pytest.mark.parametrize(
    ("scorer", "needs"),
    [
        (ReceivedAttention(), {"received_attention"}),
        (ReceivedAttention("patches"), {"attention"}),
        (ReceivedAttention(by_mass=True), {"attention"}),
        (ReceivedAttention(stride=4), {"attention"}),
        (ReceivedAttention(layer=-2), {"received_attention@-2"}),
        (ReceivedAttention("patches", layer=3), {"attention@3"}),
        (CLSAttention(layer="clip"), {"cls_attention@clip"}),
        (LastTokenAttention(layer=3), {"last_attention@3"}),
        (FeatureNorm(), {"x"}),
        (FeatureNorm("all_keys"), {"keys"}),
        (Diversity("queries"), {"queries"}),
        (Random(), set()),
        (TextRelevance("clip"), {"text", "x@clip"}),
        (Similarity("all_keys"), {"keys"}),
        (GraphEnergy(), {"keys"}),
        (GraphEnergy(fall=0.5), {"keys", "depth"}),
        (ValueWeighted("received"), {"values", "received_attention"}),
    ],
)
def test_needs_follow_from_the_options(scorer: Scorer | PairScorer, needs: set[str]) -> None:
    assert scorer.needs == needs


@pytest.mark.parametrize(("tau", "density"), [("image", None), (0.7, 0.7)])
def test_diversity_is_one_minus_density(tau: float | str, density: float | None) -> None:
    found = Diversity("keys", k=3, tau=tau).score(SEEN)  # pyright: ignore[reportArgumentType]
    close(found, 1 - neighbour_density(SEEN.keys.mean(1), 3, density))


@pytest.mark.parametrize("negated", [True, False])
def test_text_relevance_is_the_scaled_mean_cosine(negated: bool) -> None:
    cosine = torch.cosine_similarity(SEEN.x[:, :, None], SEEN.text[:, None], dim=-1).mean(-1)
    relevance = -cosine if negated else cosine
    low, high = relevance.aminmax(dim=-1, keepdim=True)
    found = TextRelevance(negated=negated).score(SEEN)
    close(found, (relevance - low) / (high - low), atol=1e-5, rtol=0)
    assert bool((found > 0).all())
    batch = TextRelevance(negated=negated, over="batch").score(SEEN)
    low, high = relevance.aminmax()
    close(batch, (relevance - low) / (high - low), atol=1e-5, rtol=0)
    flat = Example.drawn(kind="equal").evidence()
    assert bool((TextRelevance().score(flat) > 0).all())


def test_shares_of_a_question() -> None:
    logits = -(SEEN.x @ SEEN.text.mean(1)[..., None])[..., 0]
    close(TextSoftmax("clip").score(SEEN), logits.softmax(-1))
    close(TextSoftmax(negated=False).score(SEEN), (-logits).softmax(-1))
    with pytest.raises(BadArgumentError, match="one space"):
        TextSoftmax().score(site(torch.zeros(1, 3, 5), text=torch.zeros(1, 2, 4)))


@pytest.mark.parametrize("scorer", [TextRelevance(), TextSoftmax()], ids=repr)
def test_padding_of_a_text_does_not_count(scorer: Scorer) -> None:
    """Texts of different lengths in a batch: each image's scores are those with its own text alone."""
    text = torch.cat([SEEN.text, torch.full((2, 3, 6), torch.nan).double()], 1)  # [b, t + 3, c]
    mask = torch.tensor([[True, True, False, False, False], [True, False, False, False, False]])
    found = scorer.score(SEEN.with_text(text, mask))
    for row, words in enumerate((2, 1)):
        alone = Evidence(SEEN.x[row : row + 1], mass=SEEN.mass[row : row + 1])
        own, every = SEEN.text[row : row + 1, :words], torch.ones(1, words, dtype=torch.bool)
        assert torch.equal(scorer.score(alone.with_text(own, every))[0], found[row])


def test_random_scores_are_a_function_of_seed_position_and_count() -> None:
    scores = Random(5).score(SEEN)
    assert torch.equal(Random(5).score(site(torch.zeros(3, N, 1))), scores[:1].expand(3, N))
    assert not torch.equal(Random(6).score(SEEN), scores)
    many = torch.cat([Random(seed).score(site(torch.zeros(1, 400, 1))) for seed in range(20)])
    many = many.flatten()
    assert 0 <= many.min() < 0.01
    assert 0.99 < many.max() < 1
    assert bool((torch.histc(many, 10, 0, 1) / len(many) - 0.1).abs().max() < 0.02)
    assert abs(torch.stack([many[:-1], many[1:]]).corrcoef()[0, 1]) < 0.05  # of neighbours


@pytest.mark.parametrize("on", ["x", "keys", "queries", "all_keys"])
def test_similarities_are_functions_of_the_cosine(on: str) -> None:
    features = SEEN.features(on)
    cosine = torch.cosine_similarity(features[:, :, None], features[:, None], dim=-1)
    for curve, kind, dense in (
        ("cosine", Linear, cosine),
        ("nonnegative", Linear, (1 + cosine) / 2),
        ("exp", Exp, (2.5 * cosine).exp()),
        ("sigmoid", Elementwise, 1 / (1 + (-2.5 * cosine).exp())),
    ):
        affinity = Similarity(on, curve, 2.5).score(SEEN)  # pyright: ignore[reportArgumentType]
        close(affinity.dense(), dense)
        assert type(affinity.curve) is kind
    assert Similarity(on).nonnegative() == Similarity(on, "nonnegative")


def test_nearness_is_minus_the_squared_distance() -> None:
    x = SEEN.x + 1e3  # far from the origin
    pairs = NegativeSquaredDistance().score(site(x))
    close(pairs.dense(), -torch.cdist(x, x).square(), atol=1e-5, rtol=1e-6)
    assert torch.equal(pairs.best()[1], torch.arange(N).expand(2, N))


@pytest.mark.parametrize("curve", ["elu", "gaussian"])
@pytest.mark.parametrize("fall", [0.0, 0.6])
def test_energy_is_low_where_a_token_stands_alone(curve: str, fall: float) -> None:
    found = GraphEnergy("keys", 0.4, curve, alpha=2.0, fall=fall).score(SEEN)  # pyright: ignore[reportArgumentType]
    keys, margin = SEEN.keys.mean(1), 0.4 - fall * 0.5  # the example is at depth 0.5
    cosine = torch.cosine_similarity(keys[:, :, None], keys[:, None], dim=-1)
    if curve == "elu":
        energy = torch.nn.functional.elu(cosine - margin, alpha=2.0)
    else:
        normal = torch.distributions.Normal(1.0, 1 - margin)
        energy = normal.log_prob(cosine).exp()
    close(found, -energy.mean(-1))


@pytest.mark.parametrize("k", [2, 4, 40])
def test_peaks_are_crowded_and_far_from_what_is_more_crowded(k: int) -> None:
    for i, x in enumerate(SEEN.x):
        far = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / math.sqrt(6)
        density = (-far.square().sort(-1).values[:, :k].mean(-1)).exp()
        earlier = torch.ones(N, N, dtype=torch.bool).tril(-1)  # of mutual neighbours
        above = (density > density[:, None]) | ((density == density[:, None]) & earlier)
        gap = far.where(above, torch.inf).amin(-1)
        close(DensityPeak(k=k).score(SEEN)[i], gap.where(above.any(-1), far.amax()) * density)


def test_of_equally_crowded_tokens_the_first_is_the_peak() -> None:
    x = torch.tensor([[[0.0], [0.0], [0.0], [9.0], [9.0]]])
    score = DensityPeak(k=2).score(site(x))
    assert (score[0] > 0).tolist() == [True, False, False, True, False]
    # With itself alone as neighbour all are equally dense, whatever rounding makes of that distance.
    x = 1e3 * draws(1, 20, 3).float()
    far = torch.cdist(x.double(), x.double())[0] / 3**0.5
    wanted = [float(far.amax()), *(float(far[j, :j].min()) for j in range(1, 20))]
    close(DensityPeak(k=1).score(site(x))[0].double().tolist(), wanted, rtol=1e-3, atol=1e-2)


def test_a_share_as_neighbours() -> None:
    """0.1 of 20 tokens, and one more, are 3."""
    seen = site(draws(2, 20, 3))
    assert torch.equal(DensityPeak(k=0.1).score(seen), DensityPeak(k=3).score(seen))
    assert not torch.equal(DensityPeak(k=0.1).score(seen), DensityPeak(k=2).score(seen))


def test_flow_gathers_in_representatives() -> None:
    found = GraphFlow("x", 0.1, 0.5, 3).score(SEEN)
    cosine = torch.cosine_similarity(SEEN.x[:, :, None], SEEN.x[:, None], dim=-1)
    near = (cosine >= 0.1) | torch.eye(N, dtype=torch.bool)
    step = (cosine / 0.5).where(near, -torch.inf).softmax(-1)
    flow = SEEN.x.norm(dim=-1)[:, None] @ torch.linalg.matrix_power(step, 3)
    close(found, flow[:, 0] / near.sum(-1))
    # A token of zeros is its own neighbour.
    x = torch.eye(4)[None] * torch.tensor([0.0, 1, 2, 3])[:, None]
    assert GraphFlow().score(site(x))[0].tolist() == [0, 1, 2, 3]


def test_attention_times_values() -> None:
    length = SEEN.values.norm(dim=-1)  # [b, h, n]
    close(ValueWeighted().score(SEEN), (SEEN.cls_attention * length).sum(1))
    close(ValueWeighted("received").score(SEEN), SEEN.received_attention * length.sum(1))


@pytest.mark.parametrize("factor", [0.0, 50.0])
def test_mean_logits_are_those_that_vary_more(factor: float) -> None:
    # A common part of all queries makes what is received vary.
    queries = SEEN.queries + factor * SEEN.queries[:, :, :1]
    shown = {"queries": lambda: queries, "keys": lambda: SEEN.keys}
    maps = (queries @ SEEN.keys.mT).mean(1)
    received, emitted = maps.mean(1), maps.mean(2)
    more = received.var(1) > emitted.var(1)
    close(MeanLogits().score(site(SEEN.x, show=shown)), received.where(more[:, None], emitted))
    assert bool(more.all()) or not factor


def test_whose_attention_counts() -> None:
    assert attention_by("cls") == CLSAttention()
    assert attention_by("cls", sum_heads=True, layer=-2) == CLSAttention("sum", -2)
    assert attention_by("received", sum_heads=True, layer=7) == ReceivedAttention(layer=7)
    x = draws(1, 16, 4)
    shown = {"keys": x, "values": x, "received_attention": x[..., 0].softmax(-1)}
    for name in ("fastervlm", "visionzip", "vispruner", "prumerge", "topk", "evit", "ats"):
        tokenzoo.build(name, keep=8, attention_source="received").reduce(x, **shown)
        with pytest.raises(MissingEvidenceError, match="cls_attention"):
            tokenzoo.build(name, keep=8).reduce(x, **shown)


@pytest.mark.parametrize("on", ["source", "target", "both"])
def test_a_discount_weighs_pairs_by_how_little_their_tokens_are_worth(on: str) -> None:
    pairs, by = Similarity("x").nonnegative(), FeatureNorm().discount(0.3, on)  # pyright: ignore[reportArgumentType]
    weight = (-0.3 * SEEN.x.norm(dim=-1)).exp()
    one, two = pairs.score(SEEN).dense(), pairs.score(SEEN).dense()
    for times, dense in ((1, one), (2, two)):
        if on != "target":
            dense *= weight[:, :, None] ** times
        if on != "source":
            dense *= weight[:, None] ** times
    close((pairs * by).score(SEEN).dense(), one)
    close((pairs * by * by).score(SEEN).dense(), two)


def test_normalized_scores() -> None:
    raw = SEEN.x.norm(dim=-1)
    low, high = raw.aminmax(dim=-1, keepdim=True)
    ranks = raw.argsort(-1).argsort(-1)
    spread = raw.std(-1, correction=0, keepdim=True)
    for how, wanted in (
        ("minmax", (raw - low) / (high - low)),
        ("rank", ranks / (N - 1)),
        ("zscore", (raw - raw.mean(-1, keepdim=True)) / spread),
    ):
        found = FeatureNorm().normalized(how).score(SEEN)  # pyright: ignore[reportArgumentType]
        close(found, wanted, check_dtype=False)


@pytest.mark.parametrize("how", ["minmax", "rank", "zscore"])
def test_normalized_scores_of_equal_tokens_of_one_and_beside_a_nan(how: str) -> None:
    scorer = FeatureNorm().normalized(how)  # pyright: ignore[reportArgumentType]
    for example in (Example.drawn(kind="equal"), EXAMPLE.alone()):
        scores = scorer.score(example.evidence())
        assert bool(scores.isfinite().all())
        # Equal scores are a tie, and ties go to the lower index.
        assert bool((scores.diff(dim=-1) <= 1e-6).all())
    scores, others = scorer.score(EXAMPLE.poisoned([2]).evidence()), [0, 1, *range(3, N)]
    assert bool(scores[:, others].isfinite().all())
    assert torch.equal(scores[:, others].argsort(-1), SEEN.x[:, others].norm(dim=-1).argsort(-1))
    assert scores.nan_to_num(nan=-math.inf).argmin(-1).tolist() == [2, 2]


def test_sums_of_normalized_scores() -> None:
    one, other = FeatureNorm().normalized("rank"), CLSAttention().normalized()
    total = 2 * one + other * 0.5 + (one + other)
    close(total.score(SEEN), 3 * one.score(SEEN) + 1.5 * other.score(SEEN))


@pytest.mark.parametrize(
    ("combine", "named"),
    [
        (lambda a, p: a * p, "FeatureNorm * Similarity"),
        (lambda a, p: p * a, "Similarity * FeatureNorm"),
        (lambda a, p: a * a.discount(1.0), "FeatureNorm * Discount"),
        (lambda a, p: p * 2, "Similarity * 2"),
        (lambda a, p: p * p, "Similarity * Similarity"),
        (lambda a, p: a * 2, "FeatureNorm * 2"),
        (lambda a, p: 2 * a, "FeatureNorm * 2"),
        (lambda a, p: a + a, "FeatureNorm + FeatureNorm"),
        (lambda a, p: a + 1, "FeatureNorm + 1"),
        (lambda a, p: a.normalized() * True, "Normalized * True"),
        (lambda a, p: a.normalized() + a, "Sum + FeatureNorm"),
        (lambda a, p: a + a.normalized(), "FeatureNorm + Normalized"),
        (lambda a, p: (a.normalized() + a.normalized()) + a, "Sum + FeatureNorm"),
    ],
)
def test_scores_that_have_no_common_scale(
    combine: Callable[[Scorer, PairScorer], object], named: str
) -> None:
    with pytest.raises(BadArgumentError, match=re.escape(named)):
        combine(FeatureNorm(), Similarity("x"))


@pytest.mark.parametrize("heads", ["max", "mean"])
@pytest.mark.parametrize("words", ["max", "sum"])
def test_text_attention_is_over_heads_then_over_words(heads: str, words: str) -> None:
    paid = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    evidence = Evidence(
        torch.zeros(2, 5, 1), mass=torch.ones(2, 5), show={"text_attention": lambda: paid}
    )
    found = TextAttention(heads, words).score(evidence)  # pyright: ignore[reportArgumentType]
    for i, j in product(range(2), range(5)):
        each = [
            max(column) if heads == "max" else sum(column) / 3
            for column in paid[i, :, :, j].T.tolist()
        ]
        wanted = max(each) if words == "max" else sum(each)
        assert float(found[i, j]) == pytest.approx(wanted, rel=1e-5)


def test_feature_change_is_the_length_of_the_difference_of_two_layers() -> None:
    x, before = torch.randn(2, 1, 6, 3, generator=torch.Generator().manual_seed(0))
    mass = torch.ones(1, 6)
    layers = {
        name: Evidence(own, mass=mass) for name, own in (("entered", x), ("previous", before))
    }
    found = FeatureChange().score(Evidence(0 * x, mass=mass, layers=layers))
    assert torch.allclose(found.float(), (x - before).square().sum(-1).sqrt())
    swapped = FeatureChange("entered", "previous").score(Evidence(x, mass=mass, layers=layers))
    assert torch.equal(swapped, found)
