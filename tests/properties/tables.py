"""What docs/testing.md says of properties and broken parts: made from the code.

python -m tests.properties.tables writes it anew; a test fails while it is not what this makes.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from tests.mutants import BROKEN
from tokenzoo.testing import PROPERTIES, PropertyViolation, check
from tokenzoo.testing.property import Property
from tokenzoo.testing.subjects import MATCHERS, SCORERS, SITE

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"

GROUPS = {
    frozenset(SITE): "all that acts at a site",
    frozenset((*SCORERS, *MATCHERS, "merger", "restorer", "schedule")): "all parts",
    frozenset((*MATCHERS, "recipe")): "matchers, their parts, recipes",
    frozenset((*MATCHERS, "merger", "recipe")): "matchers, their parts, mergers, recipes",
}


def bound(prop: Property) -> str:
    """Whom a property binds, in words."""
    names = sorted(f"{kind}s" for kind in prop.binds)
    return GROUPS.get(prop.binds, ", ".join(names))


def properties() -> str:
    """One line a property, in the order in which they are tried."""
    rows = [f"| `{name}` | {bound(prop)} | {prop.promise} |" for name, prop in PROPERTIES.items()]
    return "\n".join(["| property | binds | promise |", "|---|---|---|", *rows])


def broken() -> str:
    """One line for each broken part, with the property that must catch it."""
    rows = [
        f"| `{mutant.liar.__name__}` | {first(mutant.liar)} | `{mutant.violates}` |"
        for mutant in BROKEN
    ]
    return "\n".join(["| broken part | what it does | caught by |", "|---|---|---|", *rows])


def first(kind: type) -> str:
    """The first sentence of a docstring."""
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def failure() -> str:
    """What a failure looks like."""
    (mutant,) = [mutant for mutant in BROKEN if mutant.liar.__name__ == "Undeclared"]
    try:
        check(mutant.broken)
    except PropertyViolation as error:
        return f"```text\n{error}\n```"
    raise AssertionError("it was not caught")


TABLES = {"properties": properties, "broken": broken, "failure": failure}


def page(text: str) -> str:
    """The page with all tables made anew."""
    for name, make in TABLES.items():
        block = f"<!-- {name} -->\n{make()}\n<!-- end -->"
        text, count = re.subn(
            rf"<!-- {name} -->\n.*?<!-- end -->", lambda _, b=block: b, text, flags=re.DOTALL
        )
        if count != 1:
            raise AssertionError(f"{count} places for {name}")
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
