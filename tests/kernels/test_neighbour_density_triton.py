"""The nearest in Triton against float64: on CUDA, or interpreted; and compiled without either."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.kernels.interpreting import DEVICE, INSTALLED, INTERPRETED, ptx, runs
from tokenzoo.kernels import neighbour_density
from tokenzoo.kernels.choice import forced
from tokenzoo.kernels.neighbour_density import nearest_squares

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def draws(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def both(features: torch.Tensor, k: int) -> list[torch.Tensor]:
    """The squared distances, ascending, of the Triton form, and of the plain one in float64."""
    with forced("triton"):
        found, _ = nearest_squares(features, k)
    expected, _ = nearest_squares(features.double(), k)
    assert found.dtype == torch.float32
    return [found.double().sort(-1).values, expected.sort(-1).values]


@runs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "d", "k"),
    [(2, 3, 1), (9, 5, 8), (70, 72, 5), (130, 200, 3)],
    ids=str,
)
def test_the_nearest(dtype: torch.dtype, n: int, d: int, k: int) -> None:
    features = draws(0, 2, n, d).to(DEVICE, dtype)
    found, expected = both(features, k)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * d)


@runs
@pytest.mark.parametrize("tau", [None, 9.0])
def test_the_density(tau: float | None) -> None:
    features = draws(1, 2, 70, 40).to(DEVICE)
    with forced("triton"):
        found = neighbour_density(features, 5, tau)
    expected = neighbour_density(features.double(), 5, tau)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@runs
def test_strides_as_they_come() -> None:
    features = draws(2, 40, 70, 2).to(DEVICE).permute(2, 1, 0)[:, ::2]
    found, expected = both(features, 4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@runs
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bad_tokens_are_nobodys_neighbour(value: float) -> None:
    features = draws(3, 2, 70, 8).to(DEVICE)
    features[:, [0, 66]] = value
    found, expected = both(features, 5)
    assert bool((found[:, [0, 66]] == math.inf).all())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@runs
def test_equal_tokens_are_each_others_neighbours() -> None:
    features = torch.ones(1, 70, 8, device=DEVICE)
    found, _ = both(features, 5)
    assert bool((found == 0).all())


@runs
def test_more_neighbours_than_the_kernel_holds() -> None:
    found, expected = both(draws(4, 1, 70, 8).to(DEVICE), 40)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@runs
def test_compiled() -> None:
    features = draws(5, 2, 70, 8).to(DEVICE)
    with forced("triton"), torch.no_grad():
        compiled = torch.compile(neighbour_density, fullgraph=True, backend="aot_eager")
        found = compiled(features, 5, None)
    expected = neighbour_density(features.double(), 5, None)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not INSTALLED or INTERPRETED, reason="needs Triton's compiler")
@pytest.mark.parametrize("type_", ["fp32", "bf16"])
def test_compiles_for_a_gpu_that_is_not_there(
    type_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from tokenzoo.kernels import neighbour_density_triton as form

    constants = {
        "K": 5, "SLOTS": 8, "ROWS": 64, "COLUMNS": 64, "CHANNELS": 32, "PRECISION": "tf32x3",
        "UPCAST": False,
    }  # fmt: skip
    pointers = {"x": type_, "squares": "fp32", "nearest": "fp32"}
    assert "mma" in ptx(form._kernel, pointers, constants)
