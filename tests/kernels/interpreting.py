"""Triton's kernels without a GPU: the same tests, in a process in which Triton interprets them.

A file of such tests, `test_*_triton.py`, marks them with `runs`; `test_in_the_interpreter.py` runs all of
these files in one such process. On CUDA they run as they stand.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch

INSTALLED = find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"

runs = pytest.mark.skipif(
    not (INSTALLED and (INTERPRETED or DEVICE == "cuda")),
    reason="needs CUDA, or Triton's interpreter: see test_in_the_interpreter",
)


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


def ptx(kernel: Any, pointers: dict[str, str], constants: dict[str, object]) -> str:
    """What a kernel becomes on an H100, assembled without one; all other arguments are 32-bit integers.

    The interpreter knows no types: this is where a kernel that CUDA would not take is seen.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    kinds = {name: f"*{pointers[name]}" if name in pointers else "i32" for name in names}
    kinds.update(dict.fromkeys(constants, "constexpr"))
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=kinds, constexprs=values)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert len(built.asm["cubin"]) > 0
    return built.asm["ptx"]
