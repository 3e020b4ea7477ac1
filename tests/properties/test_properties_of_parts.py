"""Every registered scorer, matcher, merger and schedule keeps every property that binds its kind."""

from __future__ import annotations

from typing import Any

import pytest

import tokenzoo
from tests.properties.instances import BY_HAND, cases, registered
from tokenzoo import plugins
from tokenzoo.parts import Part
from tokenzoo.scorers import Random
from tokenzoo.testing import check

SITE = registered("scorers", "matchers", "mergers")
SCHEDULES = registered("schedules")


@pytest.mark.parametrize(("part", "prop", "examples"), [*cases(SITE), *cases(SCHEDULES)])
def test_parts_have_the_properties(part: Part, prop: str, examples: int) -> None:
    check(part, prop, examples=examples, max_tokens=16)  # raises, with the example


def test_every_registered_part_is_tried() -> None:
    """A new part is, by being registered; one that takes arguments needs a line in `BY_HAND`."""
    parts: list[plugins.Kind] = ["scorers", "matchers", "mergers", "schedules"]
    assert {*parts, "recipes"} == set(plugins.KINDS)
    for kind in parts:
        instances = registered(kind)
        assert sorted(instances) == plugins.names(kind)
        missing = [name for name, made in instances.items() if not made]
        assert not missing, f"make one of each by hand, in tests/properties/instances.py: {missing}"
    assert set(BY_HAND) <= {name for kind in parts for name in plugins.names(kind)}


def test_a_new_part_is_tried_by_being_registered() -> None:
    class Plugin:
        @tokenzoo.hookimpl
        def tokenzoo_scorers(self) -> dict[str, Any]:
            return {"fresh": Random, "asks": _asks}

    with plugins.registered(Plugin()):
        found = registered("scorers")
        assert len(found["fresh"]) == 1
        assert found["asks"] == ()
        properties = [case.values[1] for case in cases({"fresh": found["fresh"]})]
        assert {"deterministic", "needs_honest", "static_shapes", "scores_formed"} <= set(
            properties
        )


def _asks(weight: float) -> Any:
    raise AssertionError(weight)
