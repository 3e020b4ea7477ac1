"""Methods that learn fit the interfaces: a scorer with parameters, and assignments that are soft.

A part that learns is a `torch.nn.Module`, and says `differentiable = True`: its scores then carry
gradients. Its parameters are its own, not the model's: an optimiser is given both.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokenzoo
from tests.adapters.models import VIT, images
from tests.adapters.models import one_thread as one_thread
from tokenzoo.evidence import Evidence
from tokenzoo.matchers import Fuse, SelectAssign, TopK
from tokenzoo.mergers import Fused
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.schedules import Explicit, Once
from tokenzoo.testing import check_scorer
from tokenzoo.token_map import TokenMap
from tokenzoo.tokens import Tokens

WIDTH, TOKENS = 48, 196


class Learned(tokenzoo.Scorer, nn.Module):
    """A small network says how much a token is worth: a score in (0, 1)."""

    differentiable = True

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 8), nn.GELU(), nn.Linear(8, 1)
        )

    def score(self, evidence: Evidence) -> Tensor:
        return self.layers(evidence.x)[..., 0].sigmoid()  # [b, n]


class Soft(nn.Module):
    """Weights `[b, k, n]` of n tokens in k new ones; each of the k has a learned query."""

    def __init__(self, k: int, width: int = WIDTH) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(k, width))

    def values(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:])

    def forward(self, x: Tensor) -> Tensor:
        """As PatchMerger has it: each query attends to the tokens."""
        return (self.queries @ self.values(x).mT).softmax(-1)


class Transport(Soft):
    """As a Sinkhorn reduction has it: all tokens are carried, and all queries get equally much."""

    def values(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        logits = F.normalize(self.queries, dim=-1) @ self.values(x).mT  # [b, k, n]
        k, n = logits.shape[1:]
        for _ in range(3):
            logits = logits - logits.logsumexp(
                1, keepdim=True
            )  # a token goes somewhere, as a whole
            logits = logits - logits.logsumexp(2, keepdim=True) + torch.tensor(n / k).log()
        return logits.exp()


@dataclass(frozen=True)
class SoftMatch(tokenzoo.Matcher):
    """All outputs are new; the record says of each token where most of it went."""

    weights: Soft

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        most = self.weights(evidence.x).argmax(1)  # [b, n]
        return TokenMap(most.new_full((most.shape[0], keep), -1), most)

    def min_tokens(self, tokens: int, prefix: int = 0) -> int:
        return min(tokens, len(self.weights.queries))


@dataclass(frozen=True)
class SoftSum(tokenzoo.Merger):
    """Each output is a weighted sum of all tokens."""

    weights: Soft

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        return plan.carry(tokens, self.weights(tokens.x) @ self.weights.values(tokens.x))


@pytest.fixture
def vit():
    """A small ViT in double precision, so that slopes can be measured."""
    torch.manual_seed(0)
    return VIT.build(depth=4).double()


def fused(scorer: tokenzoo.Scorer, keep: int = 20) -> Recipe:
    """Keep the best in two blocks, and add the others up by their scores."""
    match = SelectAssign(TopK(scorer), Fuse())
    return Recipe(Step(Stage.BLOCK, Explicit((100, 76)), match, Fused(scorer)), keep=keep)


def soft(weights: Soft) -> Recipe:
    step = Step(Stage.BLOCK, Once(1), SoftMatch(weights), SoftSum(weights))
    return Recipe(step, keep=len(weights.queries))


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return F.cross_entropy(model(x), torch.arange(len(x)))


def slope(model: nn.Module, x: Tensor, parameter: nn.Parameter, direction: Tensor) -> float:
    """What the loss does along a direction, measured."""
    h = 1e-6
    with torch.no_grad():
        parameter += h * direction
        above = loss(model, x)
        parameter -= 2 * h * direction
        below = loss(model, x)
        parameter += h * direction
    return float((above - below) / (2 * h))


def check_gradients(model: nn.Module, x: Tensor, module: nn.Module) -> None:
    """Gradients reach every parameter of a module and of the model, and are the measured slopes."""
    loss(model, x).backward()
    for name, parameter in [*module.named_parameters(), *model.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    for name, parameter in module.named_parameters():
        direction = torch.randn(parameter.shape, dtype=parameter.dtype)
        exact = float((parameter.grad * direction).sum())
        assert exact != 0, name
        assert slope(model, x, parameter, direction) == pytest.approx(exact, rel=1e-3, abs=1e-9), (
            name
        )


# --- a scorer


def test_a_scorer_that_learns_keeps_the_promises_of_scorers() -> None:
    class Scale(tokenzoo.Scorer, nn.Module):
        """The kit draws features of any width, so that this one has a parameter for each token's length."""

        differentiable = True

        def __init__(self) -> None:
            super().__init__()
            self.power = nn.Parameter(torch.tensor(0.5))

        def score(self, evidence: Evidence) -> Tensor:
            return evidence.x.double().square().sum(-1) ** self.power.double()

    check_scorer(Scale(), examples=5)


def test_a_scorer_gets_gradients_through_an_attached_model(vit) -> None:
    scorer, x = Learned().double(), images(vit, 2).double()
    with tokenzoo.build(fused(scorer)).attach(vit) as attached:
        assert attached.plan().blocks == (96, 20, 20, 20)
        check_gradients(vit, x, scorer)
        assert attached.counts == (96, 20, 20, 20)
    assert not {id(p) for p in scorer.parameters()} & {id(p) for p in vit.parameters()}


def test_without_saying_so_a_scorer_gets_none(vit) -> None:
    class Plain(Learned):
        differentiable = False

    scorer = Plain().double()
    with tokenzoo.build(fused(scorer)).attach(vit):
        loss(vit, images(vit, 2).double()).backward()
    assert all(parameter.grad is None for parameter in scorer.parameters())


def test_a_scorer_learns_on_a_frozen_model(vit) -> None:
    scorer, x = Learned().double(), images(vit, 2).double()
    vit.requires_grad_(False)
    optimiser = torch.optim.Adam(scorer.parameters(), lr=0.02)
    with tokenzoo.build(fused(scorer)).attach(vit):
        losses: list[float] = []
        for _ in range(8):
            optimiser.zero_grad()
            value = loss(vit, x)
            value.backward()
            optimiser.step()
            losses.append(value.item())
    assert losses[-1] < losses[0] - 1e-3


# --- soft assignments


@pytest.mark.parametrize("kind", [Soft, Transport])
def test_a_soft_assignment_is_a_matcher_and_a_merger(kind) -> None:
    weights = kind(7).double()
    x = torch.randn(2, 1 + 30, WIDTH, dtype=torch.float64)
    reduced = tokenzoo.build(soft(weights)).reduce(x, prefix=1)
    torch.testing.assert_close(reduced.x[:, :1], x[:, :1])
    shares, values = weights(x[:, 1:]), weights.values(x[:, 1:])
    for b in range(2):  # the sums, written out
        for k in range(7):
            expected = sum(shares[b, k, i] * values[b, i] for i in range(30))
            torch.testing.assert_close(reduced.x[b, 1 + k], expected)
    assert reduced.mass[:, 1:].sum(-1).tolist() == [30, 30]
    assert (reduced.plan.keep[:, 1:] == -1).all()
    reduced.plan.check()


def test_a_transport_is_one() -> None:
    weights = Transport(7).double()(torch.randn(2, 30, WIDTH, dtype=torch.float64))
    torch.testing.assert_close(weights.sum(-1), torch.full((2, 7), 30 / 7, dtype=torch.float64))
    assert (weights > 0).all()


@pytest.mark.parametrize("kind", [Soft, Transport])
def test_a_soft_assignment_gets_gradients_through_an_attached_model(vit, kind) -> None:
    weights, x = kind(9).double(), images(vit, 2).double()
    with tokenzoo.build(soft(weights)).attach(vit, debug=True, trace=True) as attached:
        check_gradients(vit, x, weights)
        assert attached.counts == (TOKENS, 9, 9, 9)
        assert (attached.record.keep[:, 1:] == -1).all()
        assert (
            attached.record.dst[:, 1:] >= 1
        ).all()  # of every patch it is known where most of it went
