"""Modes of running a model: eager, compiled, or as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from tokenzoo._core.validation import check_choice
from tokenzoo.errors import BadArgumentError
from tokenzoo.tools.benchmark.workload import Workload

Mode = Literal["eager", "compile", "graph"]
MODES: tuple[Mode, ...] = ("eager", "compile", "graph")
VERSIONS = 256
"""How many versions of one function torch may compile: each candidate has its own."""


def check_mode(mode: str, work: Workload) -> None:
    """Raise unless this model can be run in this mode.

    Raises:
        BadArgumentError: the mode is unknown, or it is "graph" on a CPU or for a multimodal model.
    """
    check_choice("mode", mode, *MODES)
    if mode != "graph":
        return
    if work.device.type != "cuda":
        raise BadArgumentError(
            f"mode='graph' on {work.setting.device}; CUDA graphs need device='cuda': use mode='eager' or "
            "'compile'"
        )
    if work.multimodal:
        raise BadArgumentError(
            f"mode='graph' of {work.name}; a graph is captured of an image encoder: take its tower alone, "
            "siglip-so400m-384 or clip-l-336"
        )


@contextmanager
def many_versions(mode: Mode) -> Generator[None]:
    """Let torch compile one function for as many candidates as there are."""
    if mode != "compile":
        yield
        return
    config: Any = torch._dynamo.config  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    with config.patch(recompile_limit=VERSIONS, accumulated_recompile_limit=VERSIONS):
        yield


def ready(mode: Mode, work: Workload, model: Any) -> Callable[[], object]:
    """Return the call of this model in this mode.

    "compile" compiles the tower and the language model, each as a whole, for the shapes of their inputs;
    the clock is not compiled. Compilation happens in the first calls.
    """
    if mode == "compile":
        for module in _parts(work, model):
            module.forward = torch.compile(module.forward, dynamic=False)
    call = work.run(model)
    return _captured(call) if mode == "graph" else call


def _parts(work: Workload, model: Any) -> Sequence[Any]:
    if not work.multimodal:
        return [model]
    return [model.get_submodule(name) for name in (work.encoder, work.language)]


def _captured(call: Callable[[], object]) -> Callable[[], object]:
    """Capture a call as a CUDA graph, and return its replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # the first calls set up what must not be captured
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
