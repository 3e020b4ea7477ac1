"""Properties of degenerate input: nothing raises, and NaN stays in its own token."""

from __future__ import annotations

from math import inf, nan

import torch

from tokenzoo.budget import resolve_keep
from tokenzoo.evidence import Evidence
from tokenzoo.matchers import Among, Bipartite, Drop, SelectAssign
from tokenzoo.parts import Matcher, PairScorer, Scorer
from tokenzoo.recipe import Recipe
from tokenzoo.reduce import reduce_site
from tokenzoo.testing.broken import demand, text
from tokenzoo.testing.example import Example
from tokenzoo.testing.properties.common import quietly, same, same_decisions
from tokenzoo.testing.properties.counts import exact_budget
from tokenzoo.testing.property import property_of
from tokenzoo.testing.subjects import SITE, Subject, asked, needs_all, recipe_of

BAD = (nan, inf, -inf)


@property_of(*SITE, read="tokenzoo.parts.Part")
def degenerate(subject: Subject, example: Example) -> None:
    """Nothing odd in the data raises, and every count stays exact.

    Tried are one token, all tokens zero, all kept, more wanted than there are, and all protected.
    """
    n = example.patches
    cases = (
        ("one token", example.alone()),
        ("all tokens zero", example.scaled(0.0)),
        ("all tokens kept", example.wish(n)),
        ("more tokens wanted than there are", example.wish(n + 1)),
    )
    for what, case in cases:
        quietly(lambda case=case: exact_budget.function(subject, case), what)
        if isinstance(subject, Scorer | PairScorer):  # where all stay, a reduction asks no part
            quietly(lambda case=case: subject.score(case.evidence(subject.needs)), what)
    if needs_all(recipe_of(subject)):
        return
    everything = torch.ones_like(example.protected)
    recipe = Recipe(*recipe_of(subject).steps, keep=n)
    out = quietly(lambda: example.reduce(recipe, protected=everything), "all protected")
    demand(same(out.x, example.x), "nothing changed where all is protected", out.x)


@property_of(*SITE, read="tokenzoo.parts.Part")
def nan_harmless(subject: Subject, example: Example) -> None:
    """NaN or infinities in one token, in some or in all never raise, and every count stays exact."""
    n = example.patches
    some, every = list(range(0, n, 3)), list(range(n))
    value = BAD[n % 3]  # one of them per example: all sizes are drawn
    for what, patches in (("one token", [n - 1]), ("some tokens", some), ("all tokens", every)):
        case = example.poisoned(patches, value)
        quietly(lambda case=case: exact_budget.function(subject, case), f"{value} in {what}")


@property_of(*SITE, read="tokenzoo.parts.Part")
def nan_lowest(subject: Subject, example: Example) -> None:
    """A token with NaN or inf scores lowest: a selection drops it, and a pair without one merges first.

    Nor does it spread: an output that does not contain it is finite. A part that reads no features must
    only not spread it. Exempt are parts that compute attention, since one NaN key makes the softmax of all
    tokens NaN, and parts that see only the first of the tokens (`Among`).
    """
    n = example.patches
    bad = list(range(0, n, 5))[: n - 1]
    enough = min(resolve_keep(example.keep, n), n - len(bad))
    if not bad or "attention" in recipe_of(subject).needs:
        return
    recipe = asked(subject, example.wish(enough))
    matcher, keep = recipe.steps[0].matcher, recipe.wanted(n)
    is_bad = torch.zeros(example.images, n)
    is_bad[:, bad] = 1
    looks = not _blind(recipe, example, keep)
    for value in (nan, inf):
        poisoned = example.poisoned(bad, value)
        patches, evidence = poisoned.tokens.patches, poisoned.evidence(recipe.needs)
        tokens, plan = reduce_site(recipe.steps[0], patches, evidence, keep)
        inside = plan.sum(is_bad)  # [b, m], how many of them each output has
        found = f"keep={text(plan.keep)}, dst={text(plan.dst)}"
        demand(
            bool(tokens.x.isfinite().all(-1)[inside == 0].all()),
            f"finite features in all outputs without a token that is {value}",
            f"{found}, x={text(tokens.x)}",
        )
        if looks and _drops(matcher):
            demand(
                keep > n - len(bad) or not bool(inside.any()),
                f"the patch tokens {bad}, which are {value}, dropped: enough others are there",
                found,
            )
        if (
            looks
            and isinstance(matcher, Bipartite)
            and _has_others(matcher, n, keep, bad, evidence)
        ):
            single = plan.sum(torch.ones_like(is_bad)) == 1
            demand(
                bool(((inside == 0) | single).all()),
                f"the patch tokens {bad}, which are {value}, in no pair: enough others are there",
                found,
            )


def _drops(matcher: Matcher) -> bool:
    """Whether the matcher selects from all tokens and drops the others."""
    return (
        isinstance(matcher, SelectAssign)
        and isinstance(matcher.join, Drop)
        and not isinstance(matcher.stay, Among)
    )


def _blind(recipe: Recipe, example: Example, keep: int) -> bool:
    """Whether a matcher's decisions stay the same when the order of all evidence is reversed."""
    matcher = recipe.steps[0].matcher
    there, turned = (e.evidence(recipe.needs) for e in (example, example.backwards()))
    return same_decisions(matcher.match(there, keep), matcher.match(turned, keep))


def _has_others(
    matcher: Bipartite, tokens: int, keep: int, bad: list[int], evidence: Evidence
) -> bool:
    """Whether enough pairs can be made without the bad tokens, whatever is held."""
    merges = tokens - keep
    held = 0 if matcher.protect is None else matcher.protect.count(tokens, merges)
    free = torch.arange(tokens - held)[None]
    sources, targets = matcher.split.sides(free, evidence.prefix)
    return sources.shape[1] - len(bad) >= merges and targets.shape[1] > len(bad)
