"""Properties of what must not change: protected and held tokens, conserved sums, the input."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tokenzoo._core.validation import is_kind
from tokenzoo.budget import resolve_keep
from tokenzoo.recipe import Recipe
from tokenzoo.testing.broken import demand, text
from tokenzoo.testing.example import ABOUT_TEXT, PER_TOKEN, Example
from tokenzoo.testing.properties.common import alone, same
from tokenzoo.testing.property import property_of
from tokenzoo.testing.subjects import MATCHERS, SITE, Subject, asked, needs_all, recipe_of
from tokenzoo.token_map import take


@property_of(*MATCHERS, "merger", "recipe", read="tokenzoo.zoo.Method.reduce")
def protected_untouched(subject: Subject, example: Example) -> None:
    """Prefix tokens, and what the caller protects, stay alone and unchanged, bit for bit.

    Without the protected tokens there is no whole grid and no whole attention: a part that needs one is
    refused there, and only the prefix is looked at.
    """
    p, n = example.prefix, example.patches
    recipe = recipe_of(subject)
    if needs_all(recipe):
        example = replace(example, protected=torch.zeros_like(example.protected))
    rows = example.protected[:, p:].unbind(0)
    protected = [int(row.sum()) for row in rows]  # in each image, another number

    def least(count: int) -> int:
        return count + (recipe.steps[0].matcher.min_tokens(n - count, p) if count < n else 0)

    wish = max(resolve_keep(example.keep, n), *(least(count) for count in {0, *protected}))
    out = example.reduce(
        Recipe(*recipe.steps, keep=wish),
        protected=None if needs_all(recipe) else example.protected,
    )
    held = example.protected.clone()
    held[:, :p] = True
    alone(out, example, held, "protected")
    own = torch.arange(p).expand(example.images, p)
    demand(
        torch.equal(out.plan.dst[:, :p], own) and torch.equal(out.plan.keep[:, :p], own),
        f"the {p} prefix tokens first, in their order",
        f"keep={text(out.plan.keep)}",
    )


@property_of(*MATCHERS, "merger", "recipe", read="tokenzoo.token_map.TokenMap")
def held_untouched(subject: Subject, example: Example) -> None:
    """What a matcher says it holds (`plan.held`) is merged with nothing, and unchanged."""
    out = example.reduce(asked(subject, example))
    if out.plan.held is None:
        return
    demand(
        out.plan.held.shape == out.plan.keep.shape and out.plan.held.dtype == torch.bool,
        f"plan.held as bools of shape {tuple(out.plan.keep.shape)}",
        f"{out.plan.held.dtype} of shape {tuple(out.plan.held.shape)}",
    )
    slots = out.plan.dst.clamp_min(0)
    held = take(out.plan.held.long(), slots).bool() & (out.plan.dst >= 0)
    alone(out, example, held, "held")
    demand(
        not bool((out.plan.held & (out.plan.keep < 0)).any()),
        "no new token among the held ones",
        f"held={text(out.plan.held)}, keep={text(out.plan.keep)}",
    )


@property_of("merger", "recipe", read="tokenzoo.parts.Merger")
def conserved(subject: Subject, example: Example) -> None:
    """Where nothing is dropped, what the merger says it conserves (`conserves`) is conserved.

    That is "mass", the sum of the masses, and "sum", the sum of mass * features.
    """
    recipe = asked(subject, example)
    conserves = recipe.steps[0].merger.conserves
    demand(
        is_kind(conserves, frozenset) and conserves <= {"mass", "sum"},
        'conserves as a frozenset of "mass" and "sum"',
        repr(conserves),
    )
    out = example.reduce(recipe)
    whole = (out.plan.dst >= 0).all(1)  # [b]
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    if "mass" in conserves:
        pairs["mass"] = example.mass[..., None], out.mass[..., None]
    if "sum" in conserves:
        pairs["sum"] = example.mass[..., None] * example.x, out.mass[..., None] * out.x
    for name, (before, after) in pairs.items():
        expected, found = before[whole].double().sum(1), after[whole].double().sum(1)
        scale = before[whole].double().abs().sum(1)
        demand(
            bool(((found - expected).abs() <= 1e-5 * scale + 1e-12).all()),
            f"the {name} of the tokens conserved: {text(expected)}",
            found,
        )


@property_of(*SITE, read="tokenzoo.parts.Part")
def input_untouched(subject: Subject, example: Example) -> None:
    """Nothing that is shown is changed: features, masses, keys and attention are the model's own."""
    names = (*PER_TOKEN, *ABOUT_TEXT)
    before = {name: getattr(example, name).clone() for name in names}
    example.reduce(asked(subject, example))
    changed = {name: getattr(example, name) for name in names}
    # Restored, so that the next property is checked on the data that were drawn.
    spoilt = [name for name in names if not same(before[name], changed[name])]
    found = {name: text(changed[name]) for name in spoilt}
    for name in spoilt:
        changed[name].copy_(before[name])
    demand(
        not spoilt, f"{', '.join(spoilt)} as they were: {[text(before[n]) for n in spoilt]}", found
    )
