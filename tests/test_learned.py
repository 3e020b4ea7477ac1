"""Methods that learn fit the interfaces: a scorer with parameters, and assignments that are soft.

A part that learns is a `torch.nn.Module`, and says `differentiable = True`: its scores then carry
gradients. Its parameters are its own, not the model's: an optimiser is given both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokenzoo
from tests.adapters.models import VIT, images
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

    def __init__(self, differentiable: bool = True) -> None:
        super().__init__()
        self.differentiable = differentiable
        self.layers = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, 1)
        )

    def score(self, evidence: Evidence) -> Tensor:
        return self.layers(evidence.x)[..., 0].sigmoid()  # [b, n]


class Soft(nn.Module):
    """Weights `[b, k, n]` of n tokens in k new ones, as PatchMerger has it: k learned queries attend."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(k, WIDTH))

    def values(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:])

    def forward(self, x: Tensor) -> Tensor:
        return (self.queries @ self.values(x).mT).softmax(-1)


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
def vit() -> Any:
    """A small ViT in double precision, so that slopes can be measured."""
    torch.manual_seed(0)
    return VIT.build(depth=4).double()


def fused(scorer: tokenzoo.Scorer) -> Any:
    """Keep the best in two blocks, and add the others up by their scores."""
    match = SelectAssign(TopK(scorer), Fuse())
    step = Step(Stage.BLOCK, Explicit((100, 76)), match, Fused(scorer))
    return tokenzoo.build(Recipe(step, keep=20))


def soft(weights: Soft) -> Any:
    step = Step(Stage.BLOCK, Once(1), SoftMatch(weights), SoftSum(weights))
    return tokenzoo.build(Recipe(step, keep=len(weights.queries)))


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


def test_a_scorer_gets_gradients_through_an_attached_model(vit: Any) -> None:
    scorer, x = Learned().double(), images(vit, 2).double()
    with fused(scorer).attach(vit) as attached:
        assert attached.plan().blocks == (96, 20, 20, 20)
        check_gradients(vit, x, scorer)
        assert attached.counts == (96, 20, 20, 20)
    assert not {id(p) for p in scorer.parameters()} & {id(p) for p in vit.parameters()}


@pytest.mark.parametrize("differentiable", [True, False])
def test_with_a_frozen_model_a_scorer_gets_gradients_if_it_says_so(
    vit: Any, differentiable: bool
) -> None:
    scorer = Learned(differentiable).double()
    vit.requires_grad_(not differentiable)
    with fused(scorer).attach(vit):
        loss(vit, images(vit, 2).double()).backward()
    assert all((p.grad is not None) == differentiable for p in scorer.parameters())
    assert all((p.grad is None) == differentiable for p in vit.parameters())


def test_a_soft_assignment_is_a_matcher_and_a_merger() -> None:
    weights = Soft(7).double()
    x = torch.randn(2, 1 + 30, WIDTH, dtype=torch.float64)
    reduced = soft(weights).reduce(x, prefix=1)
    reduced.plan.check()
    torch.testing.assert_close(reduced.x[:, :1], x[:, :1])
    shares, values = weights(x[:, 1:]), weights.values(x[:, 1:])
    for b in range(2):  # the sums, written out
        for k in range(7):
            expected = sum(shares[b, k, i] * values[b, i] for i in range(30))
            torch.testing.assert_close(reduced.x[b, 1 + k], expected)
    assert reduced.mass[:, 1:].sum(-1).tolist() == [30, 30]
    assert (reduced.plan.keep[:, 1:] == -1).all()


def test_a_soft_assignment_gets_gradients_through_an_attached_model(vit: Any) -> None:
    weights, x = Soft(9).double(), images(vit, 2).double()
    with soft(weights).attach(vit, debug=True, trace=True) as attached:
        check_gradients(vit, x, weights)
        assert attached.counts == (TOKENS, 9, 9, 9)
        assert (attached.record.keep[:, 1:] == -1).all()
        assert (attached.record.dst[:, 1:] >= 1).all()  # where most of every patch went
