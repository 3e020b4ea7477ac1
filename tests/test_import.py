"""Importing tokenzoo is cheap: no library is loaded that a user of bare tensors does not need.

All that needs an interpreter of its own is answered by one: what is loaded after each of some statements,
and the errors that they raise.
"""

from __future__ import annotations

import importlib.util
import json
import os
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


# In this order, each after those above it.
STATEMENTS = {
    "tensors": (
        "import tokenzoo, torch; tokenzoo.list_recipes(); tokenzoo.list_adapters(); "
        "tokenzoo.build('divprune', keep=2).reduce(torch.randn(1, 5, 3))"
    ),
    "commands": "import tokenzoo.cli",
    "variable": "x = torch.ones(1, 1, 2, 3); tokenzoo.kernels.received_attention(x, x, scale=1.0)",
    "digits": (
        "sys.modules |= dict.fromkeys(('sklearn', 'timm')); from tokenzoo.tools import digits; "
        "digits.splits()"
    ),
    "a model of digits": "digits.digits_vit()",
    "the kit": "import tokenzoo.testing",
    "matplotlib": "import matplotlib",
}
RUN = """
import json, sys

said, names = [], {"sys": sys}
for statement in json.loads(sys.argv[1]):
    try:
        exec(statement, names)
        error = ""
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    said.append([[name for name, module in sys.modules.items() if module], error])
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said() -> dict[str, tuple[set[str], str]]:
    """What is loaded after each statement, and the error that it raised, by the statement's name."""
    command = [sys.executable, "-c", RUN, json.dumps([*STATEMENTS.values()])]
    # A value that is refused where it is used, and not by the import.
    environment = {**os.environ, "TOKENZOO_KERNELS": "cuda"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = [(set(names), error) for names, error in json.loads(done.stdout)]
    return dict(zip(STATEMENTS, found, strict=True))


@pytest.mark.parametrize("statement", ["tensors", "commands"])
def test_importing_looking_up_names_and_reducing_tensors_loads_no_heavy_library(
    said, statement: str
) -> None:
    names, error = said[statement]
    assert error == ""
    assert names.isdisjoint(HEAVY)
    assert not [name for name in names if name.startswith("tokenzoo.cli.")]  # no single command
    assert "matplotlib" in said["matplotlib"][0]  # this check can fail


def test_the_kit_for_tests_is_what_needs_hypothesis(said) -> None:
    assert "hypothesis" not in said["a model of digits"][0]
    assert "hypothesis" in said["the kit"][0]


@pytest.mark.parametrize(
    ("statement", "start", "word"),
    [
        # Checked where it is used, and not by the import.
        ("variable", "BadArgumentError: TOKENZOO_KERNELS='cuda'", "'auto', 'torch' or 'triton'"),
        ("digits", "MissingDependencyError: ", "pip install 'tokenzoo[demo]'"),
        ("a model of digits", "MissingDependencyError: ", "pip install 'tokenzoo[demo]'"),
    ],
)
def test_errors_come_where_something_is_used(said, statement: str, start: str, word: str) -> None:
    assert said[statement][1].startswith(start)
    assert word in said[statement][1]


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
