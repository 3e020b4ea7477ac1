"""Tests for parts, ours and everybody's.

    from tokenzoo.testing import check_scorer

    def test_energy():
        check_scorer(Energy())

Each `check_...` holds a part to every law that binds its kind, on examples that are the same in every run,
and raises `LawBroken` with the smallest one that breaks a law; `check` takes whatever there is. The
strategies draw valid objects for tests of your own. docs/testing.md lists the laws.

Importing this package needs Hypothesis (`pip install tokenzoo[testing]`); nothing else in tokenzoo does.
"""

from tokenzoo.testing.broken import LawBroken as LawBroken
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
from tokenzoo.testing.laws import LAWS as LAWS
from tokenzoo.testing.models import Models as Models
from tokenzoo.testing.models import Run as Run
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
    "LAWS",
    "Example",
    "LawBroken",
    "Models",
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
