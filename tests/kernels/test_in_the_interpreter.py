"""The tests of all Triton kernels in one process in which Triton interprets them."""

from __future__ import annotations

from pathlib import Path

from tests.kernels.interpreting import again


def test_in_the_interpreter() -> None:
    files = sorted(map(str, Path(__file__).parent.glob("test_*_triton.py")))
    assert len(files) == 3
    again(*files)
