"""Triton's kernels are assembled for an H100 without one.

The interpreter knows no types: this is where a kernel that CUDA would not take is seen.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.interpreting import INSTALLED, INTERPRETED

WHOLE = {"ROWS": 64, "COLUMNS": 64, "CHANNELS": 32, "PRECISION": "tf32x3", "UPCAST": False}


def best_match(kind: str) -> tuple[list[str], dict[str, str], dict[str, object]]:
    """The kernels, the kinds of their pointers and their constants."""
    pointers = {"left": kind, "right": kind, "scale": "fp32", "shift": "fp32", "value": "fp32"}
    return ["_kernel"], {**pointers, "index": "i64"}, {**WHOLE, "SCALED": True, "SHIFTED": True}


def neighbour_density(kind: str) -> tuple[list[str], dict[str, str], dict[str, object]]:
    pointers = {"x": kind, "squares": "fp32", "nearest": "fp32"}
    return ["_kernel"], pointers, {**WHOLE, "K": 5, "SLOTS": 8}


def received_attention(
    kind: str, d: int, packed: bool
) -> tuple[list[str], dict[str, str], dict[str, object]]:
    from tokenzoo.kernels.received_attention_triton import _blocks

    rows, columns, width = _blocks(d, 2 if kind == "bf16" else 4)
    pointers = {"query": kind, "key": kind, "bounds": "i32"}
    pointers |= dict.fromkeys(("bias", "sums", "weight", "column_sums"), "fp32")
    constants = {"BIASED": True, "PACKED": packed, "M": rows, "N": columns, "D": width, "qd": 1}
    constants |= {"WHOLE": width >= d, "UPCAST": False, "PRECISION": "tf32x3", "kd": 1}
    return ["_sums", "_columns"], pointers, constants


@pytest.mark.skipif(not INSTALLED or INTERPRETED, reason="needs Triton's compiler")
@pytest.mark.parametrize(
    ("form", "arguments"),
    [
        *((form, (kind,)) for form in (best_match, neighbour_density) for kind in ("fp32", "bf16")),
        (received_attention, ("bf16", 72, False)),
        (received_attention, ("bf16", 300, True)),
        (received_attention, ("fp32", 72, True)),
    ],
)
def test_compiles_for_a_gpu_that_is_not_there(
    form: Any, arguments: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernels, pointers, constants = form(*arguments)
    module = import_module(f"tokenzoo.kernels.{form.__name__}_triton")
    for kernel in (getattr(module, name) for name in kernels):
        names = kernel.arg_names  # those that are no pointer are 32-bit integers
        kinds = {name: f"*{pointers[name]}" if name in pointers else "i32" for name in names}
        kinds.update(dict.fromkeys(constants, "constexpr"))
        values = {(names.index(name),): value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=kinds, constexprs=values)
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
        assert len(built.asm["cubin"]) > 0
        assert ("wgmma" if form is received_attention else "mma") in built.asm["ptx"]
