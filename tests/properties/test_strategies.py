"""What the strategies draw is valid, and what it says it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenzoo
from tokenzoo import Evidence, Recipe, Tokens, plugins
from tokenzoo.errors import BadArgumentError, BudgetError
from tokenzoo.matchers import REST, SameCell, SelectAssign, Split, Then, TopK
from tokenzoo.parts import Assigner, Matcher, Merger, PairScorer, Schedule, Scorer, Selector, walk
from tokenzoo.schedules import Mean
from tokenzoo.testing import (
    Example,
    Sites,
    budgets,
    evidence,
    examples,
    parts,
    plans,
    recipes,
    sites,
    tokens,
    towers,
)
from tokenzoo.testing.strategies import FEWEST, KINDS, layers_in


@given(examples())
@settings(max_examples=50)
def test_examples_are_what_their_story_says(example: Example) -> None:
    b, n = example.x.shape[:2]
    h = example.keys.shape[1]
    assert 1 <= b <= 3
    assert 1 <= example.patches == example.grid[0] * example.grid[1] <= 40
    assert 0 <= example.prefix == n - example.patches <= 2
    assert example.keys.shape[:3] == example.queries.shape[:3] == (b, h, n)
    assert example.cls_attention.shape == example.last_attention.shape == (b, h, n)
    assert example.text_keys.shape[:3] == (b, h, example.text.shape[1])
    for one in (example.received_attention, example.mass, example.protected):
        assert one.shape == (b, n)
    assert bool((example.mass[:, : example.prefix] == 1).all())
    names = {"Example": Example, "torch": torch}
    again = eval(repr(example), names)
    assert torch.equal(again.x, example.x)
    assert torch.equal(again.cls_attention, example.cls_attention)
    assert bool(eval(repr(example.poisoned([0])), names).x[:, example.prefix].isnan().all())


@pytest.mark.parametrize(
    ("kind", "counts"), [("distinct", {20}), ("repeated", {2, 3}), ("equal", {1})]
)
def test_kinds_of_examples(kind: str, counts: set[int]) -> None:
    assert kind in KINDS
    example = Example.drawn(kind=kind, grid=(4, 5), prefix=0)  # pyright: ignore[reportArgumentType]
    for image in (*example.x, *example.keys[:, 0]):
        assert len(image.unique(dim=0)) in counts


def test_examples_change_only_what_they_say() -> None:
    example = Example.drawn(images=3, grid=(2, 3), prefix=1, dtype=torch.float32)
    alone = example.alone()
    assert (alone.patches, alone.prefix, alone.grid) == (1, 0, (1, 1))
    assert torch.equal(alone.x[:, 0], example.x[:, 1])
    image, turned = example.image(2), example.backwards()
    for name in ("x", "keys", "text", "text_keys"):
        assert torch.equal(getattr(image, name), getattr(example, name)[2:])
        dim = {"x": 1, "keys": 2}.get(name, 0)  # texts are not turned
        there = getattr(example, name)
        assert torch.equal(getattr(turned, name), there.flip(dim) if dim else there)
    bad = example.poisoned([0, 4])
    rows = bad.x.isnan().all(-1)
    assert rows.nonzero()[:, 1].tolist() == [1, 5] * 3
    assert torch.equal(bad.keys.isnan().all(-1)[:, 0], rows)
    assert torch.equal(bad.received_attention.isnan(), rows)
    assert torch.equal(bad.x[~rows], example.x[~rows])
    infinite = example.poisoned([3], float("-inf"))
    assert bool((infinite.x[:, 4] == float("-inf")).all())
    for attention in (infinite.cls_attention, infinite.last_attention):
        assert bool(attention[:, :, 4].isnan().all())
    torch.testing.assert_close(example.nudged().x, example.x)
    assert not torch.equal(example.double().nudged().x, example.double().x)
    assert not example.scaled(0.0).keys.any()
    half = example.to(torch.bfloat16)
    assert (half.x.dtype, half.mass.dtype) == (torch.bfloat16, torch.float32)
    text = example.evidence(frozenset({"keys@text"})).at("text")
    assert torch.equal(text.x, example.text)  # other tokens than the patches, without a prefix
    assert torch.equal(text.keys, example.text_keys)
    assert layers_in(frozenset({"x", "keys@-2", "x@clip", "text"})) == {-2, "clip"}


@given(st.integers(1, 20), st.data())
@settings(max_examples=25)
def test_budgets_and_plans_are_valid(tokens: int, data: st.DataObject) -> None:
    keep = data.draw(budgets(tokens))
    assert 0 < keep <= 1 if isinstance(keep, float) else 1 <= keep <= tokens + 1
    plan = data.draw(plans(images=2, tokens=tokens, dropping=False, new=False))
    plan.check()
    assert bool((plan.dst >= 0).all() and (plan.keep >= 0).all())


@given(tokens(max_tokens=9), evidence(needs=frozenset({"keys@-2"}), max_tokens=9), towers())
@settings(max_examples=25)
def test_tokens_and_evidence_are_whole(tokens: Tokens, evidence: Evidence, tower: Any) -> None:
    assert tokens.x.shape[:2] == tokens.mass.shape
    assert 1 <= tokens.x.shape[1] - tokens.prefix <= 9
    everything = {"x", "mass", "keys", "queries", "attention", "text", "grid", "frames", "keys@-2"}
    attention = {f"{name}_attention" for name in ("received", "cls", "last")}
    assert everything | attention <= evidence.provides
    b, n = evidence.x.shape[:2]
    assert evidence.grid[0] * evidence.grid[1] == n
    assert n % evidence.frames == 0
    assert evidence.at(-2).keys.shape[::2] == (b, n)
    assert min(tower.tokens, tower.depth) >= 1


def test_sites_are_questions_that_a_schedule_understands_of_every_kind() -> None:
    drawn: set[str] = set()

    @settings(max_examples=100)
    @given(sites())
    def on(sites: Sites) -> None:
        drawn.add(sites.takes)
        assert 1 <= sites.keep <= sites.tokens + 1
        assert 1 <= sites.fewest(sites.tokens) <= sites.tokens
        try:
            counts = Mean().counts(sites.tokens, sites.sites, sites.keep, sites.fewest)
        except BudgetError:
            assert sites.takes != "all but one"
        else:
            assert counts[-1] == min(sites.keep, sites.tokens)

    on()
    assert drawn == set(FEWEST)


@given(recipes(), st.integers(4, 40))
@settings(max_examples=50)
def test_recipes_plan_or_refuse(recipe: Recipe, tokens: int) -> None:
    try:
        budget = recipe.budget(tokens, 4)
    except BadArgumentError:
        return
    assert len(budget.blocks) == 4
    for matcher in (step.matcher for step in recipe.steps):
        if isinstance(matcher, SelectAssign) and isinstance(matcher.join, SameCell):
            assert "grid" in matcher.stay.needs


KINDS_OF_PARTS = (Scorer, PairScorer, Matcher, Selector, Assigner, Split, Merger, Schedule)


@pytest.mark.parametrize("kind", KINDS_OF_PARTS, ids=lambda kind: kind.__name__)
def test_every_registered_part_is_drawn(kind: type) -> None:
    drawn: set[type] = set()

    @settings(max_examples=150)
    @given(parts(kind))
    def on(part: Any) -> None:
        assert isinstance(part, kind)
        drawn.add(type(part))

    on()
    kinds: list[plugins.Kind] = ["scorers", "matchers", "mergers", "schedules"]
    known: set[Any] = {factory for name in kinds for factory in plugins.collect(name).values()}
    assert drawn == {part for part in known if issubclass(part, kind)}


def test_parts_of_a_plugin_are_drawn_too() -> None:
    class Mine(Then):
        pass

    def mine(scorer: Scorer) -> Selector:
        return Mine((REST, TopK(scorer)))

    def asks(thing: complex) -> Selector:
        raise AssertionError(thing)

    class Plugin:
        @tokenzoo.hookimpl
        def tokenzoo_matchers(self) -> dict[str, Any]:
            return {"mine": mine, "asks": asks}

    found: set[type] = set()
    with plugins.registered(Plugin()):

        @settings(max_examples=60)
        @given(parts(Selector))
        def on(part: Selector) -> None:
            found.update(type(piece) for piece in walk(part))

        on()
    assert Mine in found
