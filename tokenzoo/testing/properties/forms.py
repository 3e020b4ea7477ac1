"""Properties of the shapes and values that one part returns to another."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenzoo.matchers import Protect, Split
from tokenzoo.parts import Assigner, PairScorer, Scorer, Selector, needs_of
from tokenzoo.temporal import Segmenter
from tokenzoo.testing.broken import demand, text
from tokenzoo.testing.example import Example
from tokenzoo.testing.property import property_of
from tokenzoo.testing.subjects import Subject, asked

PRECISE = (torch.float32, torch.float64)


@property_of("scorer", read="tokenzoo.parts.Scorer.score")
def scores_formed(subject: Scorer, example: Example) -> None:
    """Scores are `[b, n]`, float32 or better (also of features in bfloat16), and finite on finite data."""
    for case in (example, example.to(torch.bfloat16)):
        scores = subject.score(case.evidence(needs_of(subject)))
        _precise(scores, (case.images, case.patches), case)


@property_of("pair scorer", read="tokenzoo.affinity")
def pairs_formed(subject: PairScorer, example: Example) -> None:
    """A pair score is an `Affinity` of all n tokens, float32 or better, finite on finite data.

    Its weights are positive and its curve rises; so the fast way to the best partner agrees with the
    definition, `dense()`.
    """
    b, n = example.images, example.patches
    for case in (example, example.to(torch.bfloat16)):
        pairs = subject.score(case.evidence(needs_of(subject)))
        for side in (pairs.left, pairs.right):
            _precise(side, (b, n, pairs.left.shape[-1]), case)
        for weight in (pairs.source, pairs.target):
            if weight is not None:
                _precise(weight, (b, n), case)
                demand(bool((weight > 0).all()), "positive weights", weight)
        scores = pairs.dense()
        _precise(scores, (b, n, n), case)
    inner = (pairs.left @ pairs.right.mT).double().flatten().sort().values
    curved = pairs.curve(inner)
    demand(
        bool((curved.diff() >= -1e-6 * curved.abs().amax()).all()),
        f"a curve that rises with the inner products {text(inner[:8])}",
        curved[:8],
    )
    best, index = pairs.best()
    chosen, highest = scores.gather(-1, index[..., None]).squeeze(-1), scores.amax(-1)
    close = 1e-4 * scores.abs().amax() + 1e-6
    demand(
        bool(((chosen - highest).abs() <= close).all() and ((best - highest).abs() <= close).all()),
        f"best() to find the highest scores of dense(), {text(highest)}",
        f"{text(best)} at {text(index)}, where dense() has {text(chosen)}",
    )


@property_of("selector", read="tokenzoo.parts.Selector.select")
def selection_formed(subject: Selector, example: Example) -> None:
    """Kept and rest are the pool, each token once, in groups of the sizes that `groups` says.

    Tried with the whole pool, any k, and (where no grid is needed) with a part of the tokens in any order.
    """
    needs = needs_of(subject)
    evidence = example.evidence(needs)
    b, n = example.images, example.patches
    whole = torch.arange(n).expand(b, n)
    pools = [whole]
    if needs.isdisjoint({"grid", "frames"}):
        order = example.received_attention[:, example.prefix :].argsort(dim=-1, stable=True)
        pools.append(order[:, : (n + 1) // 2])
    for pool in pools:
        p = pool.shape[1]
        for k in sorted({0, 1, (p + 1) // 2, p}):
            kept, rest = subject.select(evidence, pool, k)
            _whole(torch.cat([kept, rest], 1), kept, (b, k), pool, f"kept [b, {k}] and rest of")
            groups = subject.groups(k)
            demand(
                sum(groups) == k and min(groups, default=0) >= 0,
                f"groups({k}) as sizes >= 0 that add up to {k}",
                repr(groups),
            )


@property_of("assigner", read="tokenzoo.parts.Assigner.assign")
def slots_formed(subject: Assigner, example: Example) -> None:
    """Each of the rest has one slot: -1 (dropped), a kept token's, or that of one of `extra` new ones."""
    recipe = asked(subject, example)
    b, n = example.images, example.patches
    keep = recipe.wanted(n) - subject.extra
    evidence = example.evidence(recipe.needs)
    place = torch.arange(n).expand(b, n)
    kept, rest = place[:, :keep], place[:, keep:]
    slots = subject.assign(evidence, kept, rest, (keep,))
    demand(
        slots.shape == rest.shape and slots.dtype == torch.int64,
        f"int64 slots of shape {tuple(rest.shape)}",
        f"{slots.dtype} of shape {tuple(slots.shape)}",
    )
    most = keep + subject.extra - 1
    demand(bool(((slots >= -1) & (slots <= most)).all()), f"slots from -1 to {most}", slots)


@property_of("split", read="tokenzoo.matchers.split.Split")
def sides_formed(subject: Split, example: Example) -> None:
    """The two sides are the mergeable tokens, each once, and `limit` merges are possible between them."""
    b, n = example.images, example.patches
    free = torch.arange(n).expand(b, n)
    sources, targets = subject.sides(free, example.prefix)
    _whole(torch.cat([sources, targets], 1), sources, None, free, "sources and targets of")
    limit = subject.limit(n)
    demand(
        type(limit) is int and 0 <= limit < n,
        f"limit({n}) as an int from 0 to {n - 1}",
        repr(limit),
    )
    demand(
        limit <= sources.shape[1] and (limit == 0 or targets.shape[1] > 0),
        f"{limit} sources and a target, since limit({n}) is {limit}",
        f"{sources.shape[1]} sources, {targets.shape[1]} targets",
    )


@property_of("segmenter", read="tokenzoo.temporal.segmenter.Segmenter.segment")
def segments_formed(subject: Segmenter, example: Example) -> None:
    """Segments are `[b, f]` int64, numbered from 0 in the order of the frames, without a gap."""
    evidence = example.evidence(needs_of(subject))
    segment = subject.segment(evidence)
    shape = (example.images, evidence.frames)
    demand(
        tuple(segment.shape) == shape and segment.dtype == torch.int64,
        f"int64 numbers of shape {shape}",
        f"{segment.dtype} of shape {tuple(segment.shape)}",
    )
    steps = segment.diff(dim=1)
    demand(
        bool(((steps == 0) | (steps == 1)).all() and (segment[:, 0] == 0).all()),
        "numbers from 0 on, in steps of 0 or 1",
        segment,
    )


@property_of("protection", read="tokenzoo.matchers.Protect.partition")
def partition_formed(subject: Protect, example: Example) -> None:
    """Held and free tokens are all tokens, ascending; `count` of them are held, and the merges fit."""
    b, n = example.images, example.patches
    evidence = example.evidence(needs_of(subject))
    for merges in sorted({1, n // 4, n // 2} - {0} if n > 1 else {0}):
        count = subject.count(n, merges)
        demand(
            0 <= count <= n - 2 * merges,
            f"from 0 to {n - 2 * merges} of {n} tokens held where {merges} merge",
            count,
        )
        held, free = subject.partition(evidence, merges)
        every = torch.arange(n).expand(b, n)
        _whole(
            torch.cat([held, free], 1), held, (b, count), every, f"held [b, {count}] and free of"
        )
        ascending = all(bool((side.diff(dim=-1) > 0).all()) for side in (held, free))
        demand(ascending, "ascending indices", f"held={text(held)}, free={text(free)}")


@property_of("merger", read="tokenzoo.parts.Merger.merge")
def features_formed(subject: Subject, example: Example) -> None:
    """Merged tokens have the dtype and channels of the tokens, also in bfloat16; masses are float32."""
    for case in (example, example.to(torch.bfloat16)):
        recipe = asked(subject, case)
        evidence = case.evidence(recipe.needs)
        keep = recipe.wanted(case.patches)
        plan = recipe.steps[0].matcher.match(evidence, keep)
        merged = recipe.steps[0].merger.merge(case.tokens.patches, plan, evidence)
        found = (merged.x.dtype, tuple(merged.x.shape), merged.mass.dtype)
        expected = (case.x.dtype, (case.images, keep, case.x.shape[-1]), torch.float32)
        demand(found == expected, f"x.dtype, x.shape, mass.dtype = {expected}", found)


def _precise(values: Tensor, shape: tuple[int, ...], example: Example) -> None:
    """Demand a shape, at least float32, and finite numbers."""
    found = f"{values.dtype} of shape {tuple(values.shape)} for features in {example.x.dtype}"
    demand(
        values.shape == shape and values.dtype in PRECISE,
        f"float32 or better, of shape {shape}",
        found,
    )
    demand(bool(values.isfinite().all()), f"finite numbers for finite {example.x.dtype}", values)


def _whole(
    both: Tensor, first: Tensor, shape: tuple[int, int] | None, pool: Tensor, what: str
) -> None:
    """Demand that two sides together are the pool, each token once."""
    complete = both.shape == pool.shape and torch.equal(
        both.sort(dim=-1).values, pool.sort(dim=-1).values
    )
    demand(
        complete and (shape is None or first.shape == shape),
        f"{what} {text(pool)}, each once",
        both,
    )
