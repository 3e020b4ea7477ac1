"""Comparisons of results that several properties share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from tokenzoo.reduce import Reduced
from tokenzoo.testing.broken import BrokenError, demand, text
from tokenzoo.testing.example import Example
from tokenzoo.testing.subjects import Subject, asked
from tokenzoo.token_map import TokenMap, take

_T = TypeVar("_T")


def plan_of(subject: Subject, example: Example) -> TokenMap:
    """The plan of the patch tokens."""
    recipe = asked(subject, example)
    evidence = example.evidence(recipe.needs)
    return recipe.steps[0].matcher.match(evidence, recipe.wanted(example.patches))


def same(one: Tensor, other: Tensor) -> bool:
    """Equal to the bit, and NaN at the same places."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def same_decisions(one: TokenMap, other: TokenMap) -> bool:
    """Whether two plans keep and send the same."""
    return torch.equal(one.keep, other.keep) and torch.equal(one.dst, other.dst)


def seeded(seed: int, call: Callable[[], _T]) -> _T:
    """Call with torch's generator in a known state, which is put back afterwards."""
    state = torch.get_rng_state()
    try:
        cast("Any", torch).manual_seed(seed)
        return call()
    finally:
        torch.set_rng_state(state)


def quietly(call: Callable[[], _T], what: str) -> _T:
    """Call, and demand that nothing is raised."""
    try:
        return call()
    except BrokenError as broken:
        raise BrokenError(f"{broken.expected} ({what})", broken.found) from broken
    except Exception as error:
        raise BrokenError(f"no error ({what})", f"{type(error).__name__}: {error}") from error


def alone(out: Reduced, example: Example, mask: Tensor, what: str) -> None:
    """Demand that the tokens of `mask [b, N]` are outputs of their own, equal to what they were."""
    plan = out.plan
    slot = plan.dst.clamp_min(0)  # [b, N]
    members = take(plan.sum(torch.ones(plan.dst.shape)), slot)
    index = torch.arange(plan.tokens).expand_as(slot)
    apart = (plan.dst >= 0) & (take(plan.keep, slot) == index) & (members == 1)
    demand(
        bool(apart[mask].all()),
        f"the {what} tokens {text(mask)} each in an output of its own",
        f"keep={text(plan.keep)}, dst={text(plan.dst)}",
    )
    for name, before, after in (
        ("x", example.x, take(out.x, slot)),
        ("mass", example.mass, take(out.mass, slot)),
    ):
        demand(
            same(after[mask], before[mask]),
            f"{name} of the {what} tokens unchanged, {text(before[mask])}",
            after[mask],
        )
