"""Tests for parts, built-in ones and those of plugins.

    from tokenzoo.testing import check_scorer

    def test_energy():
        check_scorer(Energy())

Each `check_...` tests a part against every property of its kind, on examples that are the same in every
run, and raises `PropertyViolation` with the smallest example that violates one; `check` takes a part of any
kind. The strategies draw valid objects for tests of your own. docs/testing.md lists the properties.

Importing this package needs Hypothesis (`pip install tokenzoo[testing]`); nothing else in tokenzoo does.
"""

from tokenzoo._core.deprecation import renamed as _renamed
from tokenzoo.testing.broken import PropertyViolation as PropertyViolation
from tokenzoo.testing.checks import check as check
from tokenzoo.testing.checks import check_adapter as check_adapter
from tokenzoo.testing.checks import check_matcher as check_matcher
from tokenzoo.testing.checks import check_merger as check_merger
from tokenzoo.testing.checks import check_recipe as check_recipe
from tokenzoo.testing.checks import check_schedule as check_schedule
from tokenzoo.testing.checks import check_scorer as check_scorer
from tokenzoo.testing.composing import parts as parts
from tokenzoo.testing.composing import recipes as recipes
from tokenzoo.testing.composing import schedules as schedules
from tokenzoo.testing.models import Models as Models
from tokenzoo.testing.models import Run as Run
from tokenzoo.testing.properties import PROPERTIES as PROPERTIES
from tokenzoo.testing.strategies import Example as Example
from tokenzoo.testing.strategies import Sites as Sites
from tokenzoo.testing.strategies import Tower as Tower
from tokenzoo.testing.strategies import budgets as budgets
from tokenzoo.testing.strategies import evidence as evidence
from tokenzoo.testing.strategies import examples as examples
from tokenzoo.testing.strategies import plans as plans
from tokenzoo.testing.strategies import sites as sites
from tokenzoo.testing.strategies import tokens as tokens
from tokenzoo.testing.strategies import towers as towers

__all__ = [
    "PROPERTIES",
    "Example",
    "Models",
    "PropertyViolation",
    "Run",
    "Sites",
    "Tower",
    "budgets",
    "check",
    "check_adapter",
    "check_matcher",
    "check_merger",
    "check_recipe",
    "check_schedule",
    "check_scorer",
    "evidence",
    "examples",
    "parts",
    "plans",
    "recipes",
    "schedules",
    "sites",
    "tokens",
    "towers",
]

__getattr__ = _renamed(__name__, {"LAWS": "PROPERTIES", "LawBroken": "PropertyViolation"})
