"""Properties of recipes: the planned counts are the actual ones, and a recipe can be saved and loaded."""

from __future__ import annotations

import tempfile
from math import inf, nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenzoo import serialization
from tokenzoo.errors import BadArgumentError, BudgetError
from tokenzoo.parts import walk
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.reduce import reduce_site
from tokenzoo.testing.broken import demand, text
from tokenzoo.testing.example import Example
from tokenzoo.testing.property import property_of
from tokenzoo.testing.strategies import Tower
from tokenzoo.tokens import Tokens
from tokenzoo.zoo import Method, load


@property_of("recipe", cases="towers", read="tokenzoo.recipe.Recipe.budget")
def budget_kept(subject: Recipe, tower: Tower) -> None:
    """The counts of the plan are what happens, site after site, and all mass that is kept is counted.

    Tried on tensors: random evidence at every site, the tokens carried on from site to site.
    """
    try:
        budget = subject.budget(tower.tokens, tower.depth, prefix=tower.prefix)
    except BadArgumentError:
        return  # out of reach, or not for such a tower: refused beforehand
    demand(
        budget == subject.budget(tower.tokens, tower.depth, prefix=tower.prefix),
        f"the same plan twice, {budget!r}",
        "another one",
    )
    start = Example.drawn(grid=(1, tower.tokens), prefix=tower.prefix, seed=tower.seed)
    tokens = Tokens.of(start.x, prefix=tower.prefix)
    dropped = torch.zeros(start.images)
    for step in subject.steps:
        if step.stage.name == "frames":  # frames are not tokens
            continue
        planned = _planned(budget, step, tower.depth)
        for site, count in enumerate(planned):
            patches = tokens.x.shape[1] - tower.prefix
            if count == patches:
                continue
            tokens, lost = _site(step, tokens, count, tower.seed + site)
            dropped = dropped + lost
            demand(
                tokens.x.shape[1] == tower.prefix + count,
                f"{count} patch tokens after site {site} of {step.stage!r}, as planned: {planned}",
                tokens.x.shape[1] - tower.prefix,
            )
            demand(
                tokens.mass.shape == tokens.x.shape[:2],
                f"a mass for each of {tuple(tokens.x.shape[:2])} tokens",
                tuple(tokens.mass.shape),
            )
    conserves = all("mass" in step.merger.conserves for step in subject.steps)
    total = tower.prefix + tower.tokens - dropped
    demand(
        not conserves or bool(((tokens.mass.sum(1) - total).abs() <= 1e-4 * total).all()),
        f"masses that add up to the tokens that are not dropped, {text(total)}",
        tokens.mass.sum(1),
    )


def _planned(budget: Any, step: Step, depth: int) -> tuple[int, ...]:
    """The counts that a budget has for a step."""
    match step.stage.name:
        case "block":
            return budget.blocks
        case "llm":
            return (dict(budget.layers)[step.stage.layer],)
        case "projected":
            return (budget.projected,)
        case "image" | "embedded":
            return (budget.entering,)
        case _:
            del depth
            return (budget.features,)


def _site(step: Step, tokens: Tokens, count: int, seed: int) -> tuple[Tokens, Tensor]:
    """Reduce at one site, on new evidence; returns the tokens, and the mass that was dropped `[b]`."""
    n = tokens.x.shape[1] - tokens.prefix
    seen = Example.drawn(grid=(1, n), prefix=tokens.prefix, seed=seed)
    evidence = seen.evidence(step.needs)
    evidence.x, evidence.mass = tokens.patches.x, tokens.patches.mass
    evidence.held = tokens.patches.held
    reduced, plan = reduce_site(step, tokens, evidence, count)
    lost = (tokens.mass * (plan.dst < 0)).sum(1)
    return reduced, lost


@property_of("recipe", cases="nothing", read="tokenzoo.zoo.Method.save")
def saved_and_loaded(subject: Recipe) -> None:
    """Saved and loaded, a recipe is equal to itself; one with an unregistered part is refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.json"
        try:
            Method(subject).save(path)
        except BadArgumentError:
            parts = [part for step in subject.steps for part in _parts(step)]
            demand(
                any(serialization.name_of(part) is None for part in parts),
                "a recipe of registered parts to be saved",
                "a refusal",
            )
            return
        back = load(path).recipe
    demand(back == subject, f"{subject!r} out of the file again", repr(back))


@property_of("recipe", cases="nothing", read="tokenzoo.recipe.Recipe")
def repr_is_code(subject: Recipe) -> None:
    """The repr of a recipe is code that builds an equal one, and equal ones have the same hash.

    Exempt are torch modules, whose repr lacks the weights, and two classes of one name (the schedule
    Mean and the merger Mean): pasted code has to import one of them under another name.
    """
    parts = [part for step in subject.steps for part in _parts(step)]
    names: dict[str, Any] = {type(part).__name__: type(part) for part in parts}
    if any(
        isinstance(part, nn.Module) or names[type(part).__name__] is not type(part)
        for part in parts
    ):
        return
    names |= {"Recipe": Recipe, "Step": Step, "Stage": Stage, "nan": nan, "inf": inf}
    again = eval(repr(subject), names)
    demand(again == subject, f"{subject!r} to build itself", repr(again))
    demand(hash(again) == hash(subject), f"the hash {hash(subject)} again", hash(again))


def _parts(step: Step) -> list[Any]:
    return list(walk((step.schedule, step.matcher, step.merger, step.restorer)))


@property_of("recipe", cases="towers", read="tokenzoo.errors.BudgetError")
def budget_refused(subject: Recipe, tower: Tower) -> None:
    """What a tower cannot reach is an error of ours, before anything runs; what it can, ends at `keep`."""
    try:
        budget = subject.budget(tower.tokens, tower.depth, prefix=tower.prefix)
    except BudgetError as error:
        demand(bool(str(error)), "a message", "none")
        return
    except BadArgumentError:
        return
    aims = [step for step in subject.steps if step.schedule.uses_keep]
    if subject.flops is not None:
        demand(budget.flops <= subject.flops, f"flops of {subject.flops} at most", budget.flops)
    elif len(subject.steps) == len(aims) == 1 and getattr(aims[0].schedule, "keep", 1) == 1:
        wanted = subject.wanted(tower.tokens)
        last = budget.least
        demand(last == wanted, f"{wanted} of {tower.tokens} tokens in the end", last)
