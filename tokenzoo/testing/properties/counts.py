"""Properties of counts and token maps: the count is known beforehand, and every token is in one place."""

from __future__ import annotations

import torch

from tokenzoo.errors import BadArgumentError
from tokenzoo.testing.broken import BrokenError, demand, text
from tokenzoo.testing.example import Example
from tokenzoo.testing.properties.common import plan_of, quietly
from tokenzoo.testing.property import property_of
from tokenzoo.testing.subjects import MATCHERS, SITE, Subject, asked, recipe_of
from tokenzoo.token_map import take


@property_of(*SITE, read="tokenzoo.parts.Matcher.match")
def exact_budget(subject: Subject, example: Example) -> None:
    """Exactly `keep` patch tokens stay, in addition to the prefix: a function of shapes alone."""
    recipe = asked(subject, example)
    out = example.reduce(recipe)
    count = example.prefix + recipe.wanted(example.patches)
    expected = (example.images, count)
    for name, found in (("x", out.x.shape[:2]), ("mass", out.mass.shape)):
        demand(
            tuple(found) == expected,
            f"{name} of {expected[0]} images with {expected[1]} tokens each",
            tuple(found),
        )
    found = (tuple(out.plan.keep.shape), tuple(out.plan.dst.shape))
    demand(
        found == (expected, tuple(example.x.shape[:2])),
        f"a plan from {example.x.shape[1]} to {count} tokens",
        f"keep and dst of shapes {found}",
    )


@property_of(*MATCHERS, "recipe", read="tokenzoo.token_map.TokenMap")
def plan_total(subject: Subject, example: Example) -> None:
    """The plan is about all tokens: each is in one place at most, and keep and dst agree."""
    plan = plan_of(subject, example).after_prefix(example.prefix)
    integers = plan.keep.dtype == plan.dst.dtype == torch.int64
    demand(integers, "int64 indices", f"{plan.keep.dtype}, {plan.dst.dtype}")
    try:
        plan.check()
    except BadArgumentError as error:
        found = f"{error}: keep={text(plan.keep)}, dst={text(plan.dst)}"
        raise BrokenError("a consistent plan", found) from error
    members = plan.sum(torch.ones(plan.dst.shape))
    demand(
        bool(((members >= 1) | (plan.keep < 0)).all()),
        "something in every output that is not new",
        f"{text(members)} members",
    )


@property_of(*MATCHERS, "recipe", read="tokenzoo.token_map.TokenMap.then")
def plans_compose(subject: Subject, example: Example) -> None:
    """Two reductions are one: p.then(q) keeps, sends and unmerges as first p and then q do."""
    first = plan_of(subject, example)
    after = example.after(first.after_prefix(example.prefix))
    second = plan_of(subject, after.wish(max(1, first.kept - 1)))
    both = first.then(second)
    y = torch.arange(1, second.keep.numel() + 1).view(second.keep.shape).double()
    one_by_one = first.unmerge(second.unmerge(y, fill=-1.0), fill=-1.0)
    at_once = both.unmerge(y, fill=-1.0)
    demand(
        torch.equal(at_once, one_by_one),
        f"p.then(q).unmerge(y) = p.unmerge(q.unmerge(y)) = {text(one_by_one)}",
        at_once,
    )
    kept = torch.where(second.keep < 0, -1, take(first.keep, second.keep.clamp_min(0)))
    demand(torch.equal(both.keep, kept), f"p.then(q) to keep {text(kept)}", both.keep)


@property_of(*MATCHERS, "recipe", read="tokenzoo.parts.Matcher.min_tokens")
def fewest_honest(subject: Subject, example: Example) -> None:
    """`min_tokens` is an int from 1 to the number of tokens; so many can really stay, and not far fewer.

    One token fewer is let pass: of an odd number, one side of a split has one more than the other.
    """
    recipe = recipe_of(subject)
    matcher = recipe.steps[0].matcher
    for n in range(1, example.patches + 1):
        fewest = matcher.min_tokens(n, example.prefix)
        demand(
            type(fewest) is int and 1 <= fewest <= n,
            f"min_tokens({n}) as an int from 1 to {n}",
            repr(fewest),
        )
    n = example.patches
    fewest = matcher.min_tokens(n, example.prefix)
    evidence = example.evidence(recipe.needs)
    for keep in (fewest, n):
        plan = quietly(
            lambda keep=keep: matcher.match(evidence, keep),
            f"{n} tokens matched down to {keep}, where min_tokens({n}) is {fewest}",
        )
        demand(
            plan.kept == keep, f"{keep} of {n} tokens where min_tokens({n}) is {fewest}", plan.kept
        )
    if fewest < 3:
        return
    try:
        plan = matcher.match(evidence, fewest - 2)
        plan.check()
    except Exception:
        return  # it refuses to go below `min_tokens`, as it should
    demand(
        plan.kept != fewest - 2,
        f"{n} tokens not to be matched down to {fewest - 2}, since min_tokens({n}) is {fewest}; the "
        "schedules rely on it",
        f"a good plan that keeps {plan.kept}: say that so few can stay",
    )
