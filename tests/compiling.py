"""For tests that compile: nothing of others is in torch's caches, and nothing is left in them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters


@pytest.fixture
def clean_compiler() -> Iterator[None]:
    # A `torch.jit.trace` that raises leaves this off in its thread, and compiled code asks for it.
    torch.set_autocast_cache_enabled(True)
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()
    counters.clear()


def graphs() -> int:
    """How many graphs were made since the test began."""
    return counters["stats"]["unique_graphs"]
