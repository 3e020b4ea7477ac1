"""Gates and soft assignments, written out again with other words: one token and one output at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence
from tokenzoo.learned import Gate, SoftMatcher, Start
from tokenzoo.matchers import PatchQueries, Slimming, TransportCentres
from tokenzoo.mergers import SoftSum, StraightThrough
from tokenzoo.recipe import Stage, Step
from tokenzoo.schedules import Once
from tokenzoo.scorers import KeepGate
from tokenzoo.token_map import TokenMap
from tokenzoo.tokens import Tokens

B, N, C, M = 2, 9, 8, 3


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = draws(B, N, C)


def evidence(x: Tensor = X, training: bool = False) -> Evidence:
    return Evidence(x, mass=torch.ones(x.shape[:2]), depth=0.5, training=training)


def normed(x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()


def weights(part: KeepGate | SoftMatcher, keep: int = M) -> dict[str, Tensor]:
    return part.read(evidence(), keep)[1]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def test_a_gate_sees_the_token_and_the_mean_of_all() -> None:
    gate = KeepGate(3)
    w = weights(gate)
    for image in range(B):
        z = [gelu(w["embed"] @ normed(x)) for x in X[image]]
        mean = torch.stack([one[C // 2 :] for one in z]).mean(0)
        for place in range(N):
            y = torch.cat([z[place][: C // 2], mean])
            for name in ("one", "two"):
                y = gelu(w[name] @ y)
            p = (w["three"] @ y).softmax(0)[0]
            torch.testing.assert_close(gate.probability(evidence())[image, place], p)
            torch.testing.assert_close(gate.score(evidence())[image, place], p.logit())


def queries(part: PatchQueries, x: Tensor, w: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    values = torch.stack([normed(one) for one in x])
    logits = torch.stack([values @ query for query in w["queries"]], 1)
    weights = (logits * (C**-0.5 if part.scaled else 1)).softmax(0)
    return weights, values if part.normed_values else x


def slimming(part: Slimming, x: Tensor, w: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    del part
    logits = torch.stack([w["two"] @ gelu(w["one"] @ normed(one)) for one in x])
    return logits.softmax(0), x


def transport(part: TransportCentres, x: Tensor, w: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Sinkhorn's algorithm without logarithms: rows and columns are scaled in turn."""
    features = x / x.norm(dim=1, keepdim=True)
    centres = w["centres"] / w["centres"].norm(dim=1, keepdim=True)
    plan = (features @ centres.T / part.temperature).exp()
    for _ in range(part.rounds):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    return plan, features if part.unit_values else x


@pytest.mark.parametrize(
    ("part", "written"),
    [
        (PatchQueries(), queries),
        (PatchQueries(1, scaled=True, normed_values=True), queries),
        (Slimming(), slimming),
        (TransportCentres(), transport),
        (TransportCentres(temperature=0.2, rounds=2, unit_values=True), transport),
    ],
)
def test_soft_assignments(part, written) -> None:
    assigned, values = part.soft(evidence(), M)
    plan = part.match(evidence(), M)
    merged = SoftSum(part).merge(Tokens.of(X), plan, evidence())
    for image in range(B):
        expected, sent = written(part, X[image], weights(part))
        torch.testing.assert_close(assigned[image], expected)
        torch.testing.assert_close(expected.sum(0), torch.ones(M, dtype=torch.float64))
        torch.testing.assert_close(values[image], sent)
        torch.testing.assert_close(merged.x[image], expected.T @ sent)
        assert plan.dst[image].tolist() == expected.argmax(1).tolist()
        shares = expected / expected.sum(1, keepdim=True)
        torch.testing.assert_close(merged.mass[image], shares.sum(0).float())


def test_protected_tokens_are_in_no_sum() -> None:
    part, held = Slimming(), torch.tensor([[2, 5]])
    free = torch.tensor([[0, 1, 3, 4, 6, 7, 8]])
    x = X[:1]
    others = evidence(x).take(free)
    plan = part.match(others, M).with_held(free, held)
    merged = SoftSum(part).merge(Tokens.of(x), plan, evidence(x))
    alone = SoftSum(part).merge(Tokens.of(x[:, free[0]]), part.match(others, M), others)
    assert torch.equal(merged.x[:, :2], x[:, held[0]])
    torch.testing.assert_close(merged.x[:, 2:], alone.x)
    assert merged.mass[0, :2].tolist() == [1, 1]
    torch.testing.assert_close(merged.mass[:, 2:], alone.mass)


@dataclass(frozen=True)
class Fixed(Gate):
    """Keeps the first token with a high probability, the others with rising ones."""

    def starts(self, width: int, keep: int) -> dict[str, Start]:
        return {}

    def logits(self, evidence: Evidence) -> Tensor:
        rising = torch.tensor([2.0, -1, -0.5, 0, 0, 0.5, 0.5, 1, 1]).double()
        return torch.stack([rising, -rising], -1).expand(B, N, 2)


def test_in_training_a_gate_draws_the_likely_ones_more_often() -> None:
    torch.manual_seed(0)
    gate, score = Fixed(), evidence(training=True)
    drawn = torch.stack([gate.score(score).argsort(1, descending=True)[:, :M] for _ in range(500)])
    often = torch.stack([(drawn == place).float().sum((0, 2)) / 500 for place in range(N)], 1)
    assert (often > 0).all()
    assert often.argmax(1).tolist() == [0, 0]
    assert (often[:, 7] > often[:, 1] + 0.2).all()
    assert torch.equal(gate.score(evidence()), gate.score(evidence()))


def test_in_training_a_gate_learns_by_the_mass() -> None:
    gate = KeepGate()
    keep = torch.arange(M).expand(B, M)
    plan = TokenMap.from_slots(
        keep, torch.arange(M, N).expand(B, -1), keep.new_full((B, N - M), -1), N
    )
    x = X.clone().requires_grad_()
    merged = StraightThrough(gate).merge(Tokens.of(x), plan, evidence(x, training=True))
    assert torch.equal(merged.mass, torch.ones(B, M))
    p = gate.probability(evidence(x, training=True))[:, :M]
    (found,) = torch.autograd.grad(merged.mass.sum(), x, retain_graph=True)
    (wanted,) = torch.autograd.grad(p.sum(), x)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)
    assert not StraightThrough(gate).merge(Tokens.of(x), plan, evidence(x)).mass.requires_grad


def test_the_penalty_of_a_gate_is_about_the_share_that_is_kept() -> None:
    gate = KeepGate()
    mean = gate.probability(evidence()).mean(1)
    expected = ((mean - M / N) ** 2).mean()
    torch.testing.assert_close(gate.penalty(evidence(), M), expected)
    assert Slimming().penalty(evidence(), M) is None


def test_a_sum_of_what_another_matcher_assigns_is_refused() -> None:
    with pytest.raises(BadArgumentError, match=r"its own matcher.*Slimming"):
        Step(Stage.BLOCK, Once(), PatchQueries(), SoftSum(Slimming()))
