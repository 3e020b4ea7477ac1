"""Triton's kernels without a GPU: the same tests, in a process in which Triton interprets them.

A file of such tests, `test_*_triton.py`, marks them with `runs`; `test_in_the_interpreter.py` runs all of
these files in one such process. On CUDA they run as they stand.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from tests.kernels import drawing

INSTALLED = find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"

HALF = (torch.bfloat16, torch.float16)

runs = pytest.mark.skipif(
    not (INSTALLED and (INTERPRETED or DEVICE == "cuda")),
    reason="needs CUDA, or Triton's interpreter: see test_in_the_interpreter",
)


def draws(seed: int, *shape: int) -> torch.Tensor:
    return drawing.draws(seed, *shape, dtype=torch.float32).to(DEVICE)


def again(*files: str) -> None:
    """Run the tests of some files in the interpreter; all of them have to pass."""
    if not INSTALLED:
        pytest.skip("Triton is not installed")
    if INTERPRETED:
        pytest.skip("this is the interpreter")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", *files],
        env={**inherited, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "passed" in done.stdout
    assert "needs CUDA" not in done.stdout, done.stdout
