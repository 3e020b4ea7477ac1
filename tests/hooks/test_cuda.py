"""On a GPU: no synchronisation, a CUDA graph, and the flash kernel under proportional attention.

Skipped where there is no GPU; `tests/hooks/test_no_waiting.py` watches for the same on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import tokenzoo
from tests.adapters.models import VIT, gap

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
NAMES = pytest.mark.parametrize("name", ["evoprune", "tome"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@pytest.fixture
def loud() -> Iterator[None]:
    """An error wherever the host waits for the device."""
    yield
    torch.cuda.set_sync_debug_mode("default")


def vit(dtype: torch.dtype, **options: Any) -> Any:
    return VIT.build(depth=6, **options).to("cuda", dtype)


def images(dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 224, 224, generator=generator).to("cuda", dtype)


def test_the_watch_of_cuda_sees_an_item(loud: None) -> None:
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError):
        torch.ones(1, device="cuda").item()


@pytest.mark.parametrize("name", tokenzoo.list_recipes())
def test_no_synchronisation(name: str, loud: None) -> None:
    model, x = vit(torch.bfloat16), images(torch.bfloat16)
    try:
        attached = tokenzoo.build(name, keep=49).attach(model)
    except tokenzoo.TokenzooError as error:
        pytest.skip(str(error))
    with torch.no_grad():
        for _ in range(2):  # kernels are compiled
            model(x)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        model(x)
        torch.cuda.set_sync_debug_mode("default")
    assert attached.features == 49


@NAMES
@DTYPES
def test_a_cuda_graph_replays_on_new_images(name: str, dtype: torch.dtype) -> None:
    model = vit(dtype)
    tokenzoo.build(name, keep=49).attach(model)
    static, others = images(dtype), [images(dtype, seed) for seed in (1, 2)]
    with torch.no_grad():
        expected = [model(x) for x in others]
        other = torch.cuda.Stream()
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            for _ in range(3):
                model(static)
        torch.cuda.current_stream().wait_stream(other)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = model(static)
    for x, wanted in zip(others, expected, strict=True):
        static.copy_(x)
        graph.replay()
        assert gap(out.float(), wanted.float()) <= (1e-5 if dtype == torch.float32 else 2e-2)


@NAMES
def test_proportional_attention_keeps_the_flash_kernel(name: str) -> None:
    # Heads of 64 channels: what trained towers have.
    model, x = vit(torch.bfloat16, embed_dim=128), images(torch.bfloat16)
    attached = tokenzoo.build(name, keep=49).attach(model)
    assert attached.recipe.proportional_attention
    with torch.no_grad():
        model(x)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            model(x)
    events = [event.key for event in seen.key_averages()]
    flash = [key for key in events if "flash" in key.lower()]
    others = [key for key in events if "efficient_attention" in key or "_attention_math" in key]
    assert flash, events
    assert not others
