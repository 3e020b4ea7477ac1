"""The property of training: gradients flow through a reduction."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tokenzoo.testing.broken import demand
from tokenzoo.testing.example import Example
from tokenzoo.testing.property import property_of
from tokenzoo.testing.subjects import Subject, asked
from tokenzoo.tokens import Tokens


@property_of("merger", "recipe", read="tokenzoo.parts.Merger")
def gradients(subject: Subject, example: Example) -> None:
    """Gradients reach the features: finite, and those that the merger's arithmetic has.

    Checked against finite differences in float64 with the decisions fixed.
    """
    example = example.double()
    recipe = asked(subject, example)
    x = example.x.clone().requires_grad_()
    out = replace(example, x=x).reduce(recipe)
    demand(out.x.requires_grad, "the result to carry gradients", "none")
    grad = _gradient((out.x * _wave(out.x)).sum(), x)
    demand(bool(grad.isfinite().all()), "a finite gradient for each token", grad)

    step, patches = recipe.steps[0], example.tokens.patches
    evidence = example.evidence(recipe.needs)
    plan = step.matcher.match(evidence, recipe.wanted(example.patches))

    def merged(values: Tensor) -> Tensor:
        return step.merger.merge(Tokens(values, patches.mass), plan, evidence).x

    point = patches.x.clone().requires_grad_()
    result = merged(point)
    weight, direction, h = _wave(result), _wave(point) + 2, 1e-5
    slope = torch.zeros_like(point)
    if result.requires_grad:
        slope = _gradient((result * weight).sum(), point)
    exact = float((slope * direction).sum())
    with torch.no_grad():
        moved = merged(patches.x + h * direction) - merged(patches.x - h * direction)
        numeric = float((moved * weight).sum() / (2 * h))
    demand(
        abs(exact - numeric) <= 1e-5 * max(1.0, abs(numeric)),
        f"the slope of the merged features, {numeric:.6g}",
        f"the gradient {exact:.6g}",
    )


def _gradient(value: Tensor, at: Tensor) -> Tensor:
    """The gradient of a scalar; zeros where it does not depend on `at`."""
    return torch.autograd.grad(value, at, materialize_grads=True)[0]


def _wave(like: Tensor) -> Tensor:
    """Weights that differ from element to element."""
    return torch.arange(1, like.numel() + 1, dtype=like.dtype).view(like.shape).cos()
