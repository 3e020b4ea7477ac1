"""Importing tokenzoo is cheap: no library is loaded that a user of bare tensors does not need."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import tokenzoo
from tokenzoo.budget import TokenBudget
from tokenzoo.hooks.handle import Attached
from tokenzoo.hooks.reduction import Event
from tokenzoo.reduce import Reduced
from tokenzoo.zoo import Method

HEAVY = ("timm", "transformers", "matplotlib", "sklearn", "hypothesis", "triton")


def loaded(statement: str) -> set[str]:
    """Which of the heavy libraries are loaded after a statement, in an interpreter of its own."""
    code = f"{statement}\nimport sys\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_looking_up_names_and_reducing_tensors_loads_no_heavy_library() -> None:
    statement = (
        "import tokenzoo, torch; tokenzoo.list_recipes(); tokenzoo.list_adapters(); "
        "tokenzoo.build('divprune', keep=2).reduce(torch.randn(1, 5, 3))"
    )
    assert loaded(statement) == set()


def test_this_check_can_fail() -> None:
    assert "matplotlib" in loaded("import matplotlib")


def test_the_kit_for_tests_is_what_needs_hypothesis() -> None:
    assert "hypothesis" in loaded("import tokenzoo.testing")


@pytest.mark.parametrize("kind", [Attached, TokenBudget, Event, Reduced, Method])
def test_what_a_call_returns_can_be_annotated(kind: type) -> None:
    """Types that a user's function takes or returns come from the top of the package."""
    assert getattr(tokenzoo, kind.__name__) is kind
    assert kind.__name__ in tokenzoo.__all__


@pytest.mark.parametrize("package", ["tokenzoo", "tokenzoo_adapters"])
def test_type_checkers_read_our_annotations(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert (Path(spec.origin).parent / "py.typed").is_file()
