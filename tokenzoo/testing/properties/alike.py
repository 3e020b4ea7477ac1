"""Properties of repeated and batched runs: the same result twice, and in any batch."""

from __future__ import annotations

from copy import deepcopy

import torch

from tokenzoo.recipe import Recipe
from tokenzoo.testing.broken import demand, text
from tokenzoo.testing.example import Example
from tokenzoo.testing.properties.common import same, same_decisions, seeded
from tokenzoo.testing.property import property_of
from tokenzoo.testing.subjects import SITE, Subject, asked
from tokenzoo.token_map import TokenMap


@property_of(*SITE, read="tokenzoo.parts.Part")
def deterministic(subject: Subject, example: Example) -> None:
    """The same data give the same result, bit for bit, whatever torch's generator and whatever came before.

    A fresh copy of the part runs once; a second copy runs on other data first.
    """
    other = example.backwards()
    fresh, used = _copy(subject), _copy(subject)
    first = seeded(1, lambda: example.reduce(asked(fresh, example)))
    seeded(2, lambda: other.reduce(asked(used, other)))
    second = seeded(3, lambda: example.reduce(asked(used, example)))
    demand(
        same_decisions(first.plan, second.plan),
        f"the same decisions twice, keep={text(first.plan.keep)}, dst={text(first.plan.dst)}",
        f"keep={text(second.plan.keep)}, dst={text(second.plan.dst)} the second time",
    )
    demand(
        same(first.x, second.x) and same(first.mass, second.mass),
        f"the same x and mass twice, {text(first.x)}",
        f"{text(second.x)} the second time",
    )


def _copy(subject: Subject) -> Subject:
    """A copy with a state of its own, if it has any."""
    try:
        return deepcopy(subject)
    except Exception:  # a part that cannot be copied shares its state, and runs twice all the same
        return subject


@property_of(*SITE, read="tokenzoo.parts.Part")
def batch_independent(subject: Subject, example: Example) -> None:
    """An image alone has the result that it has in a batch.

    Decisions that a change of one part in 10^9 turns over are ties, which rounding settles; they say
    nothing.
    """
    example = example.double()
    recipe = asked(subject, example)
    whole = example.reduce(recipe)
    for i in range(example.images):
        image = example.image(i)
        apart = image.reduce(recipe)
        there = TokenMap(whole.plan.keep[i : i + 1], whole.plan.dst[i : i + 1])
        if not same_decisions(apart.plan, there) and _is_tie(recipe, image, apart.plan):
            continue
        demand(
            same_decisions(apart.plan, there),
            f"the decisions for image {i} in the batch to be those for it alone, "
            f"keep={text(apart.plan.keep)}, dst={text(apart.plan.dst)}",
            f"keep={text(there.keep)}, dst={text(there.dst)}",
        )
        for name, one, batch in (("x", apart.x, whole.x), ("mass", apart.mass, whole.mass)):
            found = batch[i : i + 1]
            demand(
                torch.allclose(one, found, rtol=1e-6, atol=1e-6),
                f"{name} of image {i} in the batch to be {text(one)} as alone",
                found,
            )


def _is_tie(recipe: Recipe, image: Example, plan: TokenMap) -> bool:
    """Whether a change of one part in 10^9, of several that are tried, turns a decision over."""
    if not same_decisions(image.reduce(recipe).plan, plan):
        return False  # the part decides otherwise each time: no tie, but a state of its own
    nudged = (image.nudged(seed=seed).reduce(recipe).plan for seed in range(8))
    return any(not same_decisions(other, plan) for other in nudged)
