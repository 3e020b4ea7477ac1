"""The properties catch what breaks them: the mutation check of the kit itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import tokenzoo
from tests.mutants import BROKEN, Mutant, adapters
from tests.mutants.matchers import OneTooMany
from tests.mutants.scorers import Dice, Halves, Unwritable
from tokenzoo import Recipe, plugins
from tokenzoo.parts import Part
from tokenzoo.testing import PROPERTIES, Models, PropertyViolation, check, check_adapter
from tokenzoo.testing.checks import hold
from tokenzoo.testing.subjects import recipe_of

EACH = pytest.mark.parametrize(
    "mutant", BROKEN, ids=[f"{mutant.violates}-{mutant.liar.__name__}" for mutant in BROKEN]
)

# What no part can break: the runtime itself refuses a second recipe.
KEPT_BY_US = {"attached_once"}


class Plugin:
    """Two of the mutants have names, so that files can hold them."""

    @tokenzoo.hookimpl
    def tokenzoo_scorers(self) -> dict[str, Any]:
        return {"halves": Halves, "unwritable": Unwritable}


@pytest.fixture(autouse=True, scope="module")
def mutants() -> Iterator[None]:
    with plugins.registered(adapters, "mutants"), plugins.registered(Plugin(), "names"):
        yield


def subject_of(subject: Any) -> Any:
    part = isinstance(subject, Part | Recipe)
    return subject if part else Models(subject, adapters.images())


def whole_kit(subject: Any, *, examples: int) -> None:
    if isinstance(subject, Part | Recipe):
        check(subject, examples=examples, max_tokens=8)
    else:
        check_adapter(subject, image=adapters.images(), examples=2)


@EACH
def test_the_kit_catches_it_and_so_does_its_law(mutant: Mutant) -> None:
    with pytest.raises(PropertyViolation) as caught:
        whole_kit(mutant.broken, examples=8)
    if caught.value.property != mutant.violates:  # one that is tried before caught it, too
        with pytest.raises(PropertyViolation) as caught:
            hold(PROPERTIES[mutant.violates], subject_of(mutant.broken), max_tokens=8)
    error, promise = caught.value, PROPERTIES[mutant.violates].promise
    assert error.property == mutant.violates
    assert f"violates the property {mutant.violates!r}: {promise}" in str(error)
    for line in ("  expected: ", "  found: ", "  smallest example:\n", "  read: docs/testing.md"):
        assert f"\n{line}" in str(error)
    # The example can be pasted: run by itself, it violates the same property again.
    mine = {"make": mutant.broken, "image": adapters.images()}
    with pytest.raises(PropertyViolation) as again:
        exec(error.example, mine)
    assert again.value.property == mutant.violates
    # What its repr builds is another one: that is its lie.
    assert again.value.found == error.found or mutant.liar is Halves


# Those that are registered are held to every property in test_properties_of_parts.
REGISTERED = {made for kind in plugins.KINDS for made in plugins.collect(kind).values()}
HONEST = {repr(mutant.honest): mutant.honest for mutant in BROKEN}
HONEST = [honest for honest in HONEST.values() if type(honest) not in REGISTERED]


@pytest.mark.parametrize("honest", HONEST, ids=lambda part: type(part).__name__)
def test_the_nearest_honest_part_passes(honest: Any) -> None:
    whole_kit(honest, examples=8)
    assert honest not in [mutant.broken for mutant in BROKEN]


def test_every_law_has_something_that_breaks_it() -> None:
    broken = Counter(mutant.violates for mutant in BROKEN)
    assert set(broken) | KEPT_BY_US == set(PROPERTIES)
    assert not KEPT_BY_US & set(broken)
    assert len({mutant.liar for mutant in BROKEN}) >= 25


def test_every_liar_says_how_it_lies() -> None:
    for mutant in BROKEN:
        assert mutant.liar.__doc__
        # Not the dataclass's own.
        assert not mutant.liar.__doc__.startswith(f"{mutant.liar.__name__}(")


@pytest.mark.parametrize("prop", ["exact_budget", "gradients", "needs_honest"])
def test_a_broken_part_violates_its_own_property_and_few_others(prop: str) -> None:
    """The properties are told apart: a part that keeps a state still keeps the counts."""
    recipe = recipe_of(Dice())
    check(recipe, prop, examples=8, max_tokens=12)
    with pytest.raises(PropertyViolation):
        check(recipe, "deterministic", examples=8, max_tokens=12)


def test_the_example_shown_is_the_smallest() -> None:
    with pytest.raises(PropertyViolation) as caught:
        check(OneTooMany(), "exact_budget")
    error = caught.value
    assert "images=1, grid=(1, 2), prefix=0, heads=1" in error.example
    assert error.expected == "no error"
    assert error.found.endswith("from 2 tokens to 1, and returns one from 2 to 2")
    assert error.example.splitlines()[1:3] == [
        "from tests.mutants.matchers import OneTooMany",
        "from tokenzoo.testing import Example, PROPERTIES",
    ]
