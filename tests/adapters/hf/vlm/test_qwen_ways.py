"""Of Qwen's towers alone: gradients by hand, sizes that differ between threads, graph breaks.

The ways of running that all models share are in tests/conformance.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import tokenzoo
from tests.adapters.hf.vlm import plain_qwen as plain
from tests.adapters.hf.vlm.test_qwen_tower import (
    MIXED,
    Grids,
    Replay,
    bare,
    pixels,
    run,
    sizes,
    tower,
)
from tests.adapters.models import gap, one_thread  # noqa: F401
from tests.pairs import paired
from tokenzoo.errors import AttachError
from tokenzoo.hooks.reduction import Event

KINDS = ("qwen2_vl", "qwen2_5_vl")
NAMES = ("evoprune", "tome", "random", "divprune")
BOTH = pytest.mark.parametrize("kind", KINDS)
EACH = pytest.mark.parametrize("name", NAMES)
PAIRS = paired("kind", KINDS, "name", NAMES)
KEEP = 0.4


def build(name: str) -> tokenzoo.Method:
    return tokenzoo.build(name, keep=KEEP)


@cache
def expected(kind: str, name: str, grids: Grids = MIXED) -> Tensor:
    """What a tower that is nothing but attached makes."""
    model = tower(kind)
    build(name).attach(model)
    return run(model, pixels(model, grids), grids)


# ------------------------------------------------------------------------------------ training


def loss(out: Tensor) -> Tensor:
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    return (out * weights).sum()


def gradients(model: Any, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss(model(x, grid_thw=torch.tensor(MIXED)).pooler_output).backward()
    return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> bool:
    return one.keys() == other.keys() and all(gap(one[k], other[k]) <= tolerance for k in one)


@BOTH
@pytest.mark.parametrize("name", ["evoprune", "tome"])
def test_gradients_are_those_of_the_plain_tower(kind: str, name: str) -> None:
    model = tower(kind).train()
    x = pixels(model, MIXED)
    events: list[Event] = []
    with build(name).attach(model, on_reduce=events.append) as attached:
        found = gradients(model, x)
        proportional = attached.recipe.proportional_attention
    model.zero_grad()
    images = plain.run(model, x, MIXED, Replay(events, MIXED), proportional=proportional)
    loss(plain.merged(model, images)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert gap(found[key], parameter.grad) <= 1e-3, key


@BOTH
@EACH
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_")  # renamed in 5.23
def test_reentrant_checkpoints_are_refused(kind: str, name: str) -> None:
    model = tower(kind).train()
    x = pixels(model, MIXED)
    build(name).attach(model)
    plainly = gradients(model, x)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    if name == "divprune":  # after the blocks
        gradients(model, x)
    else:
        with pytest.raises(AttachError, match="use_reentrant=False"):
            gradients(model, x)
    model.gradient_checkpointing_disable()
    assert same(gradients(model, x), plainly)


# ---------------------------------------------------------------------- copies and other places


@BOTH
def test_two_threads(kind: str) -> None:
    """With images of other sizes in each."""
    model = tower(kind)
    build("evoprune").attach(model)
    passes: tuple[Grids, ...] = (MIXED, ((1, 8, 12), (2, 6, 4)))
    inputs = [pixels(model, grids) for grids in passes]
    wanted = [expected(kind, "evoprune", grids) for grids in passes]
    found: dict[int, list[Tensor]] = {0: [], 1: []}
    tokens: dict[int, set[int]] = {}

    def work(index: int) -> None:
        for _ in range(10):
            found[index].append(run(model, inputs[index], passes[index]))
        tokens[index] = {one.tokens for one in model._tokenzoo_attached.passes}

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in (0, 1):
        assert len(found[index]) == 10
        assert all(torch.equal(out, wanted[index]) for out in found[index])
        assert tokens[index] == set(sizes(passes[index]))


# ------------------------------------------------------------------------------------ compiled


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled_after_attach_it_is_the_same() -> None:
    """With windows, and the graph breaks of the bare tower, which reads the grids on the host."""
    model = tower("qwen2_5_vl", depth=2, fullatt_block_indexes=[1])
    grids: Grids = ((1, 6, 10),)
    x = pixels(model, grids)
    torch._dynamo.reset()
    counters.clear()
    try:
        with tokenzoo.build("evoprune", keep=0.6, start=0).attach(model):
            wanted = run(model, x, grids)
            made = torch.compile(model, backend="eager")
            for _ in range(2):
                assert gap(run(made, x, grids), wanted) <= 1e-5
            assert counters["stats"]["unique_graphs"] > 0
            with pytest.raises(AttachError, match="attach first, then compile"):
                build("tome").attach(made, replace=True)
    finally:
        torch._dynamo.reset()


# ------------------------------------------------------------------------------- other calls


@PAIRS
def test_other_forms_of_a_call(kind: str, name: str) -> None:
    model = tower(kind)
    x, grids = pixels(model, MIXED), torch.tensor(MIXED)
    build(name).attach(model)
    wanted = expected(kind, name)
    with torch.inference_mode():
        assert torch.equal(model(x, grid_thw=grids).pooler_output, wanted)
    with torch.no_grad():
        assert torch.equal(model(x, grids).pooler_output, wanted)
        assert torch.equal(model(hidden_states=x, grid_thw=grids).pooler_output, wanted)
        assert torch.equal(model(x, grid_thw=grids, return_dict=False)[1], wanted)
        out = model(x, grid_thw=grids, output_hidden_states=True)
    assert torch.equal(out.pooler_output, wanted)
    rows = [
        sum(one.counts[i] * len(one.images) for one in model._tokenzoo_attached.passes) * 4
        for i in range(5)
    ]
    assert [len(hidden) for hidden in out.hidden_states] == [len(x), *rows]
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)


@BOTH
def test_one_image_of_one_group(kind: str) -> None:
    model = tower(kind)
    grids: Grids = ((1, 2, 2),)
    for name in ("evoprune", "tome", "random", "pool"):
        with build(name).attach(model) as attached:
            out = run(model, pixels(model, grids), grids)
            assert attached.counts == (1,) * 5
        assert torch.equal(out, bare(kind, grids=grids))
