"""What all tests share: the same examples in every run, no deadlines on a busy machine, one thread.

`HYPOTHESIS_PROFILE=thorough pytest tests/properties` tries every property on 1,000 examples.

The tensors are tiny: a second thread only waits for the first, and on busy cores that made these tests
five times slower.

The files that take longest begin first: of two workers, one was left alone with a slow file at the end.

The garbage collector went over the million objects of the imported libraries again and again, for a twelfth
of the time. It leaves them alone now, and runs less often.
"""

from __future__ import annotations

import gc
import os
from collections import Counter

import pytest
import torch
from hypothesis import settings

settings.register_profile("tokenzoo", derandomize=True, deadline=None)
settings.register_profile("thorough", settings.get_profile("tokenzoo"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "tokenzoo"))
torch.set_num_threads(1)

USUAL = 0.1
SECONDS = {  # a test, about, in files whose tests are slow
    "conformance/test_by_hand.py": 0.3,
    "conformance/test_compiled.py": 4,
    "conformance/test_generate.py": 0.2,
    "conformance/test_ways.py": 0.15,
    "conformance/test_whole.py": 0.2,
    "evaluation/test_on_ray.py": 10,
    "examples/test_docs_plugins.py": 2,
    "hooks/test_compiled.py": 3,
    "hooks/test_fsdp.py": 1,
    "kernels/test_assembled.py": 2,
    "kernels/test_in_the_interpreter.py": 20,
    "properties/test_broken_parts.py": 0.5,
    "properties/test_properties_of_adapters.py": 1,
    "tools/test_onnx.py": 6,
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Let each test draw the same numbers on one thread, whichever tests ran before it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist keep the order of the files, which it would sort by their number of tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files by the time that they take, the longest first."""
    names = {item.path: "/".join(item.path.parts[-2:]) for item in items}
    tests = Counter(item.path for item in items)
    seconds = {path: tests[path] * SECONDS.get(name, USUAL) for path, name in names.items()}
    items.sort(key=lambda item: -seconds[item.path])


def pytest_collection_finish() -> None:
    """Exempt all that is there from garbage collection; what a test makes is still collected."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
