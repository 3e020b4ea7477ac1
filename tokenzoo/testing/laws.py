"""What must hold for every part, whoever wrote it.

A law is a plain function of a part (or a recipe) and one `Example`: it returns nothing, or raises
`LawBroken`, which says what was expected and shows the example. Where an example does not concern a law
(nothing was dropped, nothing was merged, too few tokens) the law holds.

A part alone reduces nothing, so each is looked at inside the plainest recipe that uses it
(`recipe_of`): a token scorer as a top-k selection, a merger behind a plan that merges all that does not
stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf, nan
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from tokenzoo.budget import resolve_keep
from tokenzoo.errors import BadArgumentError, MissingEvidenceError
from tokenzoo.evidence import Evidence, Layer
from tokenzoo.interfaces import (
    Assigner,
    Matcher,
    Merger,
    PairScorer,
    Part,
    Scorer,
    Selector,
)
from tokenzoo.matchers import (
    Bipartite,
    Drop,
    Nearest,
    Protect,
    SelectAssign,
    Split,
    Strided,
    TopK,
)
from tokenzoo.mergers import Keep, WeightedMean
from tokenzoo.plan import Plan, take
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.reduce import Reduced, reduce_site
from tokenzoo.schedules import Once
from tokenzoo.scorers import Similarity
from tokenzoo.testing.strategies import Example, layers_in
from tokenzoo.tokens import Tokens

Subject = Part | Recipe
Law = Callable[[Subject, Example], None]

_T = TypeVar("_T")


class LawBroken(AssertionError):  # noqa: N818 - it is an assertion that failed, not an error of ours
    """A part does not keep a promise. The message says which, what was expected, and shows the example:
    run the law on that example alone, and mend the part.
    """


def recipe_of(subject: Subject) -> Recipe:
    """The plainest recipe of one step that uses a part; a recipe is its own.

    Raises:
        BadArgumentError: a kind of part that no such recipe is known for.
    """
    if isinstance(subject, Recipe):
        return subject
    keep, mean = Keep(), WeightedMean()
    cosine = Similarity("x")
    match subject:
        case Matcher():
            parts = subject, mean
        case Merger():
            parts = SelectAssign(Strided(), Nearest(cosine)), subject
        case Scorer():
            parts = SelectAssign(TopK(subject), Drop()), keep
        case PairScorer():
            parts = Bipartite(subject), mean
        case Selector():
            parts = SelectAssign(subject, Drop()), keep
        case Assigner():
            parts = SelectAssign(Strided(), subject), mean
        case Split():
            parts = Bipartite(cosine, split=subject), mean
        case Protect():
            parts = Bipartite(cosine, protect=subject), mean
        case _:
            raise BadArgumentError(
                f"{subject!r} is a {type(subject).__name__}; laws are for recipes, scorers of tokens and "
                "pairs, selectors, assigners, splits, protections, matchers and mergers"
            )
    return Recipe(Step(Stage.FEATURES, Once(), *parts))


def asked(subject: Subject, example: Example) -> Recipe:
    """The recipe of a part with the example's `keep`, or the least that one step reaches."""
    recipe = recipe_of(subject)
    n = example.patches
    keep = example.keep
    fewest = recipe.steps[0].matcher.fewest(n, example.prefix)
    if resolve_keep(keep, n) < fewest:
        keep = fewest
    return Recipe(*recipe.steps, keep=keep, proportional_attention=recipe.proportional_attention)


def exact_budget(subject: Subject, example: Example) -> None:
    """Exactly `keep` patch tokens stay beside the prefix: a function of shapes alone."""
    recipe = asked(subject, example)
    out = example.reduce(recipe)
    count = example.prefix + recipe.wanted(example.patches)
    expected = (example.images, count)
    for name, found in (("x", out.x.shape[:2]), ("mass", out.mass.shape)):
        _demand(
            tuple(found) == expected,
            f"{name} of {expected[0]} images with {expected[1]} tokens each, found {tuple(found)}",
            (subject, example),
        )
    found = (tuple(out.plan.keep.shape), tuple(out.plan.dst.shape))
    _demand(
        found == (expected, tuple(example.x.shape[:2])),
        f"a plan from {example.x.shape[1]} to {count} tokens, found keep and dst of shapes {found}",
        (subject, example),
    )


def protected_untouched(subject: Subject, example: Example) -> None:
    """Prefix tokens, and what the caller protects, stay alone and unchanged, bit for bit.

    Beside protected tokens there is no whole grid and no whole attention: a part that needs one is
    refused there, and only the prefix is looked at.
    """
    p, n = example.prefix, example.patches
    recipe = recipe_of(subject)
    if _needs_all(recipe):
        example = replace(example, protected=torch.zeros_like(example.protected))
    rows = example.protected[:, p:].unbind(0)
    protected = [int(row.sum()) for row in rows]  # in each image, another number

    def least(count: int) -> int:
        return count + (recipe.steps[0].matcher.fewest(n - count, p) if count < n else 0)

    wish = max(resolve_keep(example.keep, n), *(least(count) for count in {0, *protected}))
    out = example.reduce(
        Recipe(*recipe.steps, keep=wish),
        protected=None if _needs_all(recipe) else example.protected,
    )
    held = example.protected.clone()
    held[:, :p] = True
    _alone(out, example, held, "protected", subject)
    own = torch.arange(p).expand(example.images, p)
    _demand(
        torch.equal(out.plan.dst[:, :p], own) and torch.equal(out.plan.keep[:, :p], own),
        f"the {p} prefix tokens first, in their order; found keep={_text(out.plan.keep)}",
        (subject, example),
    )


def held_untouched(subject: Subject, example: Example) -> None:
    """What a matcher says it holds (`plan.held`) is merged with nothing, and unchanged."""
    out = example.reduce(asked(subject, example))
    if out.plan.held is None:
        return
    _demand(
        out.plan.held.shape == out.plan.keep.shape and out.plan.held.dtype == torch.bool,
        f"plan.held as bools of shape {tuple(out.plan.keep.shape)}, found {out.plan.held!r}",
        (subject, example),
    )
    slots = out.plan.dst.clamp_min(0)
    held = take(out.plan.held.long(), slots).bool() & (out.plan.dst >= 0)
    _alone(out, example, held, "held", subject)
    _demand(
        not bool((out.plan.held & (out.plan.keep < 0)).any()),
        "no new token among the held ones",
        (subject, example),
    )


def conserved(subject: Subject, example: Example) -> None:
    """Where nothing is dropped, what the merger says it conserves is conserved.

    That is "mass", the sum of the masses, and "sum", the sum of mass * features.
    """
    recipe = asked(subject, example)
    out = example.reduce(recipe)
    whole = (out.plan.dst >= 0).all(1)  # [b]
    conserves = recipe.steps[0].merger.conserves
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    if "mass" in conserves:
        pairs["mass"] = example.mass[..., None], out.mass[..., None]
    if "sum" in conserves:
        pairs["sum"] = example.mass[..., None] * example.x, out.mass[..., None] * out.x
    for name, (before, after) in pairs.items():
        expected, found = before[whole].double().sum(1), after[whole].double().sum(1)
        scale = before[whole].double().abs().sum(1)
        _demand(
            bool(((found - expected).abs() <= 1e-5 * scale + 1e-12).all()),
            f"the {name} of the tokens conserved: {_text(expected)}, found {_text(found)}",
            (subject, example),
        )


def plan_total(subject: Subject, example: Example) -> None:
    """The plan is about all tokens: each is in one place at most, and keep and dst agree."""
    plan = example.reduce(asked(subject, example)).plan
    integers = plan.keep.dtype == plan.dst.dtype == torch.int64
    _demand(
        integers, f"int64 indices, found {plan.keep.dtype}, {plan.dst.dtype}", (subject, example)
    )
    try:
        plan.check()
    except BadArgumentError as error:
        raise _broken(f"a consistent plan; {error}, found {plan!r}", (subject, example)) from error
    members = plan.sum(torch.ones(plan.dst.shape))
    _demand(
        bool(((members >= 1) | (plan.keep < 0)).all()),
        f"something in every output that is not new, found {_text(members)} members",
        (subject, example),
    )


def plans_compose(subject: Subject, example: Example) -> None:
    """Two reductions are one: p.then(q) keeps, sends and unmerges as first p and then q do."""
    first = _plan(subject, example)
    after = example.after(first.after_prefix(example.prefix))
    second = _plan(subject, after.wish(max(1, first.kept - 1)))
    both = first.then(second)
    y = torch.arange(1, second.keep.numel() + 1).view(second.keep.shape).double()
    step_by_step = first.unmerge(second.unmerge(y, fill=-1.0), fill=-1.0)
    _demand(
        torch.equal(both.unmerge(y, fill=-1.0), step_by_step),
        f"p.then(q).unmerge(y) = p.unmerge(q.unmerge(y)) = {_text(step_by_step)}, found "
        f"{_text(both.unmerge(y, fill=-1.0))}",
        (subject, example),
    )
    kept = torch.where(second.keep < 0, -1, take(first.keep, second.keep.clamp_min(0)))
    _demand(
        torch.equal(both.keep, kept),
        f"p.then(q) to keep {_text(kept)}, found {_text(both.keep)}",
        (subject, example),
    )


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
        alone = image.reduce(recipe)
        nudged = image.nudged().reduce(recipe)
        if not _same_decisions(alone.plan, nudged.plan):
            continue
        there = Plan(whole.plan.keep[i : i + 1], whole.plan.dst[i : i + 1])
        _demand(
            _same_decisions(alone.plan, there),
            f"the decisions for image {i} in the batch to be those for it alone, "
            f"keep={_text(alone.plan.keep)} and dst={_text(alone.plan.dst)}; found "
            f"keep={_text(there.keep)} and dst={_text(there.dst)}",
            (subject, example),
        )
        for name, one, other in (("x", alone.x, whole.x), ("mass", alone.mass, whole.mass)):
            found = other[i : i + 1]
            _demand(
                torch.allclose(one, found, rtol=1e-6, atol=1e-6),
                f"{name} of image {i} in the batch to be {_text(one)} as alone, found "
                f"{_text(found)}",
                (subject, example),
            )


def deterministic(subject: Subject, example: Example) -> None:
    """The same twice gives the same result twice, bit for bit, whatever state torch's generator is in."""
    recipe = asked(subject, example)
    state = torch.get_rng_state()
    try:
        first, second = (_after_seed(seed, lambda: example.reduce(recipe)) for seed in (1, 2))
    finally:
        torch.set_rng_state(state)
    _demand(
        _same_decisions(first.plan, second.plan),
        f"the same decisions twice, keep={_text(first.plan.keep)}; found "
        f"{_text(second.plan.keep)} the second time",
        (subject, example),
    )
    _demand(
        _same(first.x, second.x) and _same(first.mass, second.mass),
        f"the same x and mass twice, {_text(first.x)}; found {_text(second.x)}",
        (subject, example),
    )


def gradients(subject: Subject, example: Example) -> None:
    """Gradients reach the features: finite, and those that the merger's arithmetic has.

    Checked against finite differences in float64 with the decisions fixed.
    """
    example = example.double()
    recipe = asked(subject, example)
    x = example.x.clone().requires_grad_()
    out = replace(example, x=x).reduce(recipe)
    _demand(out.x.requires_grad, "the result to carry gradients, found none", (subject, example))
    grad = _gradient((out.x * _wave(out.x)).sum(), x)
    _demand(
        bool(grad.isfinite().all()),
        f"a finite gradient for each token, found {_text(grad)}",
        (subject, example),
    )

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
    _demand(
        abs(exact - numeric) <= 1e-5 * max(1.0, abs(numeric)),
        f"the slope {numeric:.6g} of the merged features, found the gradient {exact:.6g}",
        (subject, example),
    )


def degenerate(subject: Subject, example: Example) -> None:
    """Nothing odd in the data raises, and every count stays exact.

    Tried are one token, all tokens equal, all zero, all kept, all protected, and NaN or infinities in
    one token, in some, and in all of them.
    """
    n = example.patches
    some, every = list(range(0, n, 3)), list(range(n))
    cases: list[tuple[str, Example]] = [
        ("one token", example.alone()),
        ("all tokens zero", example.scaled(0.0)),
        ("all tokens kept", example.wish(n)),
        ("more tokens wanted than there are", example.wish(n + 1)),
    ]
    for value in (nan, inf, -inf):
        for where, patches in (("one token", [n - 1]), ("some tokens", some), ("all", every)):
            cases.append((f"{value} in {where}", example.poisoned(patches, value)))
    for what, case in cases:
        _quietly(lambda case=case: exact_budget(subject, case), what, (subject, case))
    if _needs_all(recipe_of(subject)):
        return
    everything = torch.ones_like(example.protected)
    recipe = Recipe(*recipe_of(subject).steps, keep=n)
    out = _quietly(
        lambda: example.reduce(recipe, protected=everything), "all protected", (subject, example)
    )
    _demand(_same(out.x, example.x), "nothing changed where all is protected", (subject, example))


def nan_lowest(subject: Subject, example: Example) -> None:
    """A token with NaN or inf scores lowest: a selection drops it, and a pair without one merges first.

    Nor does it spread: an output that it is no part of is finite. The law is for parts that look at
    features or attention, and not for those that compute attention themselves: the softmax makes every
    token NaN when one key is.
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
    for value in (nan, inf):
        poisoned = example.poisoned(bad, value)
        patches, evidence = poisoned.tokens.patches, poisoned.evidence(recipe.needs)
        tokens, plan = reduce_site(recipe.steps[0], patches, evidence, keep)
        inside = plan.sum(is_bad)  # [b, m], how many of them each output has
        found = f"found keep={_text(plan.keep)}, dst={_text(plan.dst)}"
        _demand(
            bool(tokens.x.isfinite().all(-1)[inside == 0].all()),
            f"finite features in all outputs without a token that is {value}; {found}, x={_text(tokens.x)}",
            (subject, poisoned),
        )
        if isinstance(matcher, SelectAssign) and isinstance(matcher.join, Drop):
            _demand(
                keep > n - len(bad) or not bool(inside.any()),
                f"the patch tokens {bad}, which are {value}, dropped: enough others are there; {found}",
                (subject, poisoned),
            )
        if isinstance(matcher, Bipartite) and _has_other_pairs(matcher, n, keep, bad, evidence):
            alone = plan.sum(torch.ones_like(is_bad)) == 1
            _demand(
                bool(((inside == 0) | alone).all()),
                f"the patch tokens {bad}, which are {value}, in no pair: enough others are there; "
                f"{found}",
                (subject, poisoned),
            )


def needs_honest(subject: Subject, example: Example) -> None:
    """What is declared is enough: with the evidence named in `needs` and nothing else, it works."""
    recipe = asked(subject, example)
    step = recipe.steps[0]
    keep = recipe.wanted(example.patches)
    evidence = _only(step.needs, example)
    try:
        reduce_site(step, example.tokens, evidence, keep)
    except (MissingEvidenceError, _UndeclaredError) as error:
        raise _broken(
            f"only evidence of needs={sorted(step.needs)} to be read; {error}", (subject, example)
        ) from error


def fewest_honest(subject: Subject, example: Example) -> None:
    """`fewest` is an int from 1 to the number of tokens, and so many can really stay."""
    recipe = recipe_of(subject)
    matcher = recipe.steps[0].matcher
    for n in range(1, example.patches + 1):
        fewest = matcher.fewest(n, example.prefix)
        _demand(
            type(fewest) is int and 1 <= fewest <= n,
            f"fewest({n}) as an int from 1 to {n}, found {fewest!r}",
            (subject, example),
        )
    n = example.patches
    fewest = matcher.fewest(n, example.prefix)
    for keep in (fewest, n):
        plan = _quietly(
            lambda keep=keep: matcher.match(example.evidence(recipe.needs), keep),
            f"{n} tokens matched down to {keep}, where fewest({n}) is {fewest}",
            (subject, example),
        )
        _demand(
            plan.kept == keep,
            f"{keep} of {n} tokens where fewest({n}) is {fewest}, found {plan.kept}",
            (subject, example),
        )


LAWS: Mapping[str, Law] = {
    law.__name__: law
    for law in (
        exact_budget,
        protected_untouched,
        held_untouched,
        conserved,
        plan_total,
        plans_compose,
        batch_independent,
        deterministic,
        gradients,
        degenerate,
        nan_lowest,
        needs_honest,
        fewest_honest,
    )
}
"""Every law, by its name."""


class _UndeclaredError(Exception):
    """Evidence was read that the part did not declare."""


def _only(needs: frozenset[str], example: Example) -> Evidence:
    """The evidence named in `needs`; anything else raises when it is read."""
    full = example.evidence(needs)

    def shown(declared: set[str], layers: Mapping[Layer, Evidence]) -> Evidence:
        def show(name: str) -> Callable[[], Tensor]:
            def read() -> Tensor:
                if name not in declared:
                    raise _UndeclaredError(f"{name} was read")
                value: Tensor = getattr(full, name)
                return value

            return read

        names = ("keys", "queries", "received_attention", "cls_attention")
        return Evidence(
            full.x,
            mass=full.mass,
            show={name: show(name) for name in names},
            attention=full.attention if "attention" in declared else None,
            prefix=full.prefix,
            grid=full.grid if "grid" in declared else None,
            text=full.text if "text" in declared else None,
            layers=layers,
        )

    def declared_at(layer: str) -> set[str]:
        named = (need.partition("@") for need in needs)
        return {name for name, _, where in named if where == layer}

    return shown(
        declared_at(""),
        {layer: shown(declared_at(str(layer)), {}) for layer in layers_in(needs)},
    )


def _needs_all(recipe: Recipe) -> bool:
    """Whether a recipe needs what only all tokens together have."""
    names = {need.partition("@")[0] for need in recipe.needs}
    return not names.isdisjoint({"grid", "frames", "attention"})


def _plan(subject: Subject, example: Example) -> Plan:
    """The plan of the patch tokens."""
    recipe = asked(subject, example)
    evidence = example.evidence(recipe.needs)
    return recipe.steps[0].matcher.match(evidence, recipe.wanted(example.patches))


def _has_other_pairs(
    matcher: Bipartite, tokens: int, keep: int, bad: list[int], evidence: Evidence
) -> bool:
    """Whether enough pairs can be made without the bad tokens, whatever is held."""
    merges = tokens - keep
    held = 0 if matcher.protect is None else matcher.protect.count(tokens, merges)
    free = torch.arange(tokens - held)[None]
    sources, targets = matcher.split.sides(free, evidence.prefix)
    return sources.shape[1] - len(bad) >= merges and targets.shape[1] > len(bad)


def _alone(out: Reduced, example: Example, mask: Tensor, what: str, subject: Subject) -> None:
    """Demand that the tokens of `mask [b, N]` are outputs of their own, equal to what they were."""
    plan = out.plan
    slot = plan.dst.clamp_min(0)  # [b, N]
    members = take(plan.sum(torch.ones(plan.dst.shape)), slot)
    index = torch.arange(plan.tokens).expand_as(slot)
    apart = (plan.dst >= 0) & (take(plan.keep, slot) == index) & (members == 1)
    _demand(
        bool(apart[mask].all()),
        f"the {what} tokens {_text(mask)} each in an output of its own, found "
        f"keep={_text(plan.keep)}, dst={_text(plan.dst)}",
        (subject, example),
    )
    for name, before, after in (
        ("x", example.x, take(out.x, slot)),
        ("mass", example.mass, take(out.mass, slot)),
    ):
        _demand(
            _same(after[mask], before[mask]),
            f"{name} of the {what} tokens unchanged, {_text(before[mask])}; found "
            f"{_text(after[mask])}",
            (subject, example),
        )


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal, and NaN at the same places."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _same_decisions(one: Plan, other: Plan) -> bool:
    return torch.equal(one.keep, other.keep) and torch.equal(one.dst, other.dst)


def _after_seed(seed: int, call: Callable[[], _T]) -> _T:
    """Call with torch's generator in a known state, so that what throws dice does so again."""
    cast("Any", torch).manual_seed(seed)
    return call()


def _gradient(value: Tensor, at: Tensor) -> Tensor:
    """The gradient of a scalar; zeros where it does not depend on `at`."""
    return torch.autograd.grad(value, at, materialize_grads=True)[0]


def _text(values: Tensor) -> str:
    """All the numbers, in one line."""
    return str(cast("Any", values).tolist())


def _wave(like: Tensor) -> Tensor:
    """Weights that differ from element to element."""
    return torch.arange(1, like.numel() + 1, dtype=like.dtype).view(like.shape).cos()


def _quietly(call: Callable[[], _T], what: str, case: tuple[Subject, Example]) -> _T:
    """Call, and demand that nothing is raised."""
    try:
        return call()
    except LawBroken:
        raise
    except Exception as error:
        raise _broken(f"no error, found {type(error).__name__}: {error} ({what})", case) from error


def _broken(expected: str, case: tuple[Subject, Example]) -> LawBroken:
    subject, example = case
    return LawBroken(f"{subject!r}: expected {expected}. Example: {example!r}")


def _demand(holds: bool, expected: str, case: tuple[Subject, Example]) -> None:
    if not holds:
        raise _broken(expected, case)
