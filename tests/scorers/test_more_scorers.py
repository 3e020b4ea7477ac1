"""GraphEnergy, DensityPeak, GraphFlow, TextSoftmax and others, by their formulas."""

from __future__ import annotations

import math

import pytest
import torch

import tokenzoo
from tokenzoo import Evidence
from tokenzoo.errors import BadArgumentError, MissingEvidenceError
from tokenzoo.scorers import (
    CLSAttention,
    DensityPeak,
    GraphEnergy,
    GraphFlow,
    MeanLogits,
    NegativeSquaredDistance,
    ReceivedAttention,
    TextRelevance,
    TextSoftmax,
    ValueWeighted,
    attention_by,
)
from tokenzoo.testing import Example

EXAMPLE = Example.drawn(images=2, grid=(3, 5), heads=3, width=4, channels=6)
N = 15


def seen(*needs: str) -> Evidence:
    return EXAMPLE.evidence(frozenset(needs))


@pytest.mark.parametrize("curve", ["elu", "gaussian"])
@pytest.mark.parametrize("fall", [0.0, 0.6])
def test_energy_is_low_where_a_token_stands_alone(curve: str, fall: float) -> None:
    evidence = seen()
    margin = 0.4 - fall * 0.5  # the example is at depth 0.5
    found = GraphEnergy("keys", 0.4, curve, alpha=2.0, fall=fall).score(evidence)
    keys = evidence.keys.mean(1)
    for i in range(2):
        for t in range(N):
            energy = 0.0
            for j in range(N):
                cos = float(torch.cosine_similarity(keys[i, t], keys[i, j], dim=0))
                x = cos - margin
                if curve == "elu":
                    energy += x if x > 0 else 2.0 * (math.exp(x) - 1)
                else:
                    s = 1 - margin
                    energy += math.exp(-(((1 - cos) / s) ** 2) / 2) / (s * math.sqrt(2 * math.pi))
            assert float(found[i, t]) == pytest.approx(-energy / N, rel=1e-9)
    assert ("depth" in GraphEnergy(fall=fall).needs) == (fall > 0)


@pytest.mark.parametrize("k", [1, 4, 40])
def test_peaks_are_crowded_and_far_from_what_is_more_crowded(k: int) -> None:
    evidence = seen()
    found = DensityPeak(k=k).score(evidence)
    for i, x in enumerate(evidence.x):
        far = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / math.sqrt(6)
        near = far.square().sort(-1).values[:, :k]
        density = [math.exp(-float(row.mean())) for row in near]
        for t in range(N):
            denser = [
                float(far[t, j])
                for j in range(N)
                if density[j] > density[t] or (density[j] == density[t] and j < t)
            ]
            gap = min(denser) if denser else float(far.amax())
            assert float(found[i, t]) == pytest.approx(gap * density[t], rel=1e-6, abs=1e-9)


def test_of_equal_tokens_the_first_is_the_peak() -> None:
    x = torch.tensor([[[0.0], [0.0], [0.0], [9.0], [9.0]]])
    score = DensityPeak(k=2).score(Evidence(x, mass=torch.ones(1, 5)))
    assert (score[0] > 0).tolist() == [True, False, False, True, False]


def test_flow_gathers_in_representatives() -> None:
    evidence = seen()
    found = GraphFlow("x", 0.1, 0.5, 3).score(evidence)
    for i, x in enumerate(evidence.x):
        cos = torch.nn.functional.normalize(x, dim=-1) @ torch.nn.functional.normalize(x, dim=-1).mT
        step = torch.zeros(N, N, dtype=torch.float64)
        for a in range(N):
            near = [b for b in range(N) if cos[a, b] >= 0.1 or a == b]
            weight = [math.exp(float(cos[a, b]) / 0.5) for b in near]
            for b, w in zip(near, weight, strict=True):
                step[a, b] = w / sum(weight)
        flow = x.norm(dim=-1) @ torch.linalg.matrix_power(step, 3)
        torch.testing.assert_close(found[i], flow / (step > 0).sum(1))


def test_a_token_of_zeros_is_its_own_neighbour() -> None:
    x = torch.eye(4)[None] * torch.tensor([0.0, 1, 2, 3])[:, None]
    score = GraphFlow().score(Evidence(x, mass=torch.ones(1, 4)))
    assert score[0].tolist() == [0, 1, 2, 3]


def test_shares_of_a_question() -> None:
    evidence = seen("x@clip")
    found = TextSoftmax("clip").score(evidence)
    mean = evidence.text.mean(1)
    logits = torch.stack([-(evidence.x[i] @ mean[i]) for i in range(2)])
    torch.testing.assert_close(found, logits.softmax(-1))
    torch.testing.assert_close(TextSoftmax(negated=False).score(evidence), (-logits).softmax(-1))
    other = Evidence(torch.zeros(1, 3, 5), mass=torch.ones(1, 3), text=torch.zeros(1, 2, 4))
    with pytest.raises(BadArgumentError, match="one space"):
        TextSoftmax().score(other)


def test_attention_times_values() -> None:
    evidence = seen()
    length = evidence.values.square().sum(-1).sqrt()
    wanted = sum(evidence.cls_attention[:, h] * length[:, h] for h in range(3))
    torch.testing.assert_close(ValueWeighted().score(evidence), wanted)
    received = ValueWeighted("received")
    assert received.needs == {"values", "received_attention"}
    torch.testing.assert_close(
        received.score(evidence), evidence.received_attention * length.sum(1)
    )


def test_mean_logits_are_those_that_vary_more() -> None:
    evidence = seen()
    for factor in (0.0, 50.0):
        # A common part of all queries makes what is received vary.
        queries = evidence.queries + factor * evidence.queries[:, :, :1]
        shown = {"queries": lambda q=queries: q, "keys": lambda: evidence.keys}
        site = Evidence(evidence.x, mass=evidence.mass, show=shown)
        maps = (queries @ evidence.keys.mT).mean(1)
        received, emitted = maps.mean(1), maps.mean(2)
        for i in range(2):
            more = received if received[i].var() > emitted[i].var() else emitted
            torch.testing.assert_close(MeanLogits().score(site)[i], more[i])
        if factor:
            assert bool((received.var(1) > emitted.var(1)).all())


def test_nearness_is_minus_the_squared_distance() -> None:
    evidence = seen()
    x = evidence.x + 1e3  # far from the origin
    pairs = NegativeSquaredDistance().score(Evidence(x, mass=evidence.mass))
    torch.testing.assert_close(pairs.dense(), -torch.cdist(x, x).square(), atol=1e-5, rtol=1e-6)
    _, best = pairs.best()
    assert torch.equal(best, torch.arange(N).expand(2, N))


def test_whose_attention_counts() -> None:
    assert attention_by("cls") == CLSAttention()
    assert attention_by("cls", sum_heads=True, layer=-2) == CLSAttention("sum", -2)
    assert attention_by("received", sum_heads=True, layer=7) == ReceivedAttention(layer=7)
    with pytest.raises(BadArgumentError, match="attention_source='all'"):
        attention_by("all")  # pyright: ignore[reportArgumentType]
    for name in ("fastervlm", "visionzip", "vispruner", "prumerge", "topk", "evit", "ats"):
        x = torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(0))
        shown = {"keys": x, "values": x, "received_attention": x[..., 0].softmax(-1)}
        reduced = tokenzoo.build(name, keep=8, attention_source="received").reduce(x, **shown)
        assert reduced.x.shape == (1, 8, 4)
        with pytest.raises(MissingEvidenceError, match="cls_attention"):
            tokenzoo.build(name, keep=8).reduce(x, **shown)


def test_relevance_over_the_batch_is_theirs() -> None:
    evidence = seen()
    image = TextRelevance().score(evidence)
    batch = TextRelevance(over="batch").score(evidence)
    assert float(image.amin(1)[1]) == pytest.approx(float(image.amin(1)[0]), abs=1e-5)
    assert float((batch.amin(1)[1] - batch.amin(1)[0]).abs()) > 1e-3
    assert float(batch.amax()) == pytest.approx(1, abs=1e-5)
    assert bool((batch.argsort(-1) == image.argsort(-1)).all())


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: GraphEnergy(margin=math.nan), "margin=nan"),
        (lambda: GraphEnergy(margin=1.0, curve="gaussian"), "1 - margin"),
        (lambda: GraphEnergy(fall=-0.1), "fall=-0.1"),
        (lambda: GraphEnergy("x", curve="relu"), "curve='relu'"),  # pyright: ignore[reportArgumentType]
        (lambda: DensityPeak("y"), "on='y'"),
        (lambda: DensityPeak(k=0), "k=0"),
        (lambda: GraphFlow(threshold=1.5), "threshold=1.5"),
        (lambda: GraphFlow(steps=0), "steps=0"),
        (lambda: GraphFlow(temperature=0), "temperature=0"),
        (lambda: ValueWeighted("all"), "attention_source='all'"),  # pyright: ignore[reportArgumentType]
        (lambda: NegativeSquaredDistance("y"), "on='y'"),
        (lambda: TextRelevance(over="all"), "over='all'"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_options_that_cannot_work(make, named: str) -> None:
    with pytest.raises(BadArgumentError, match=named):
        make()
