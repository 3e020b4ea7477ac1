"""Where the towers of Qwen2-VL and Qwen2.5-VL run: in training, in half, copied, offloaded, compiled."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor
from torch._dynamo.utils import counters

import tokenzoo
from tests.adapters.hf.vlm import plain_qwen as plain
from tests.adapters.hf.vlm.calls import remains
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
from tokenzoo.hooks.attach import find_adapter
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
def test_checkpointing_changes_no_gradient_or_is_refused(kind: str, name: str) -> None:
    model = tower(kind).train()
    x = pixels(model, MIXED)
    build(name).attach(model)
    plainly = gradients(model, x)
    runs: list[int] = []
    model.blocks[3].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert same(gradients(model, x), plainly)
    assert len(runs) == 2  # it really recomputes
    model.gradient_checkpointing_disable()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    if name == "divprune":  # behind the blocks
        gradients(model, x)
    else:
        with pytest.raises(AttachError, match="use_reentrant=False"):
            gradients(model, x)
    model.gradient_checkpointing_disable()
    assert same(gradients(model, x), plainly)


@BOTH
def test_only_in_one_mode_and_paused(kind: str) -> None:
    model = tower(kind)
    x = pixels(model, MIXED)
    with build("evoprune").attach(model, when="eval") as attached:
        assert torch.equal(run(model, x, MIXED), expected(kind, "evoprune"))
        assert torch.equal(run(model.train(), x, MIXED), bare(kind))
        model.eval()
        with attached.paused():
            assert torch.equal(run(model, x, MIXED), bare(kind))
        assert torch.equal(run(model, x, MIXED), expected(kind, "evoprune"))


# ----------------------------------------------------------------------------------- precision


@PAIRS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("base", ["sdpa", "eager"])
def test_half_precision(kind: str, name: str, dtype: torch.dtype, base: str) -> None:
    """Rounding may change a choice: what must not change is counted."""
    model = tower(kind, base).to(dtype)
    x = pixels(model, MIXED).to(dtype)
    whole = run(model, x, MIXED)
    with build(name).attach(model) as attached:
        out = run(model, x, MIXED)
        assert out.dtype == dtype
        assert out.shape == expected(kind, name).shape
        assert out.isfinite().all()
        for one in attached.passes:
            assert one.counts == attached.plan(one.tokens).blocks
            assert one.mass is not None
            assert one.mass.dtype == torch.float32
    assert torch.equal(run(model, x, MIXED), whole)
    with tokenzoo.build(name, keep=1.0).attach(model):
        assert torch.equal(run(model, x, MIXED), whole)


@PAIRS
def test_autocast(kind: str, name: str) -> None:
    model = tower(kind)
    x = pixels(model, MIXED)
    build(name).attach(model)
    with torch.autocast("cpu", torch.bfloat16):
        out = run(model, x, MIXED)
    assert out.shape == expected(kind, name).shape
    assert out.isfinite().all()
    assert torch.equal(run(model, x, MIXED), expected(kind, name))


# ---------------------------------------------------------------------- copies and other places


@PAIRS
def test_a_copy_is_attached_by_itself(kind: str, name: str) -> None:
    model = tower(kind)
    x = pixels(model, MIXED)
    attached = build(name).attach(model)
    twin = copy.deepcopy(model)
    attached.detach()
    assert torch.equal(run(model, x, MIXED), bare(kind))
    assert torch.equal(run(twin, x, MIXED), expected(kind, name))
    twin._tokenzoo_attached.detach()
    assert remains(twin) == []
    assert torch.equal(run(twin, x, MIXED), bare(kind))


def test_unpickled_in_another_process(tmp_path: Path) -> None:
    model = tower("qwen2_5_vl")
    x = pixels(model, MIXED)
    build("tome").attach(model)
    grids = torch.tensor(MIXED)
    (tmp_path / "model").write_bytes(pickle.dumps((model, x, grids, run(model, x, MIXED))))
    code = (
        "import pickle, sys, torch; torch.set_num_threads(1)\n"
        "model, x, grids, expected = pickle.load(open(sys.argv[1], 'rb'))\n"
        "found = model(x, grid_thw=grids).pooler_output\n"
        "assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-4)\n"
        "model._tokenzoo_attached.detach()\n"
        "assert model.config._attn_implementation == 'sdpa'\n"
        "assert len(model(x, grid_thw=grids).pooler_output) == len(x) // 4\n"
    )
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model")], check=True, env=path)


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


def on_disk(model: Any, folder: Path) -> None:
    accelerate.disk_offload(model, folder, torch.device("cpu"))


def off_device(model: Any, folder: Path) -> None:
    del folder
    accelerate.cpu_offload(model, torch.device("cpu"))


def per_block(model: Any, folder: Path) -> None:
    """As a device_map does it: a hook of accelerate on every block, which moves its weights."""
    del folder
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for path in find_adapter(model).blocks():
        start = f"{path.name}."
        hook = AlignDevicesHook(
            execution_device=torch.device("cpu"),
            offload=True,
            place_submodules=True,
            weights_map={k.removeprefix(start): v for k, v in state.items() if k.startswith(start)},
        )
        add_hook_to_module(model.get_submodule(path.name), hook)


@paired("kind", KINDS, "name", ["evoprune", "divprune"])
@pytest.mark.parametrize("offload", [on_disk, off_device, per_block])
@pytest.mark.parametrize("first", ["attach", "other"])
def test_offloaded_by_accelerate(
    kind: str, name: str, offload: Callable[[Any, Path], None], first: str, tmp_path: Path
) -> None:
    model = tower(kind)
    x = pixels(model, MIXED)
    if first == "other":
        offload(model, tmp_path)
    with build(name).attach(model):
        if first == "attach":
            offload(model, tmp_path)
        assert any(parameter.is_meta for parameter in model.parameters())
        assert torch.equal(run(model, x, MIXED), expected(kind, name))
    assert torch.equal(run(model, x, MIXED), bare(kind))


# ------------------------------------------------------------------------------------ compiled


@pytest.mark.parametrize(("kind", "name"), [("qwen2_vl", "tome"), ("qwen2_5_vl", "evoprune")])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled_behind_attach_it_is_the_same(kind: str, name: str) -> None:
    """With the graph breaks of the bare tower, which reads the grids on the host."""
    few = {"depth": 2} if kind == "qwen2_vl" else {"depth": 2, "fullatt_block_indexes": [1]}
    model = tower(kind, **few)
    grids: Grids = ((1, 6, 10),)
    x = pixels(model, grids)
    torch._dynamo.reset()
    counters.clear()
    try:
        options = {"start": 0} if name == "evoprune" else {}
        with tokenzoo.build(name, keep=0.6, **options).attach(model):
            wanted = run(model, x, grids)
            made = torch.compile(model, backend="eager")
            for _ in range(2):
                assert gap(run(made, x, grids), wanted) <= 1e-5
            assert counters["stats"]["unique_graphs"] > 0
            with pytest.raises(AttachError, match="attach first, then compile"):
                build(name).attach(made, replace=True)
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


@PAIRS
def test_again_and_again(kind: str, name: str) -> None:
    model = tower(kind)
    x = pixels(model, MIXED)
    for _ in range(2):
        with build(name).attach(model):
            for _ in range(2):
                assert torch.equal(run(model, x, MIXED), expected(kind, name))
        assert remains(model) == []
        assert torch.equal(run(model, x, MIXED), bare(kind))
    build("uniform").attach(model)
    build(name).attach(model, replace=True)
    assert torch.equal(run(model, x, MIXED), expected(kind, name))


class BoomError(Exception):
    """An error of somebody else."""


@PAIRS
@pytest.mark.parametrize("place", ["blocks.3.attn", "blocks.3.mlp", "blocks.4", "merger"])
def test_an_error_in_the_middle_leaves_nothing_behind(kind: str, name: str, place: str) -> None:
    model = tower(kind)
    x = pixels(model, MIXED)
    attached = build(name).attach(model)
    run(model, x, MIXED)

    def boom(*args: Any) -> None:
        raise BoomError

    handle = model.get_submodule(place).register_forward_hook(boom)
    other: Grids = ((1, 8, 12),)
    with pytest.raises(BoomError):
        run(model, pixels(model, other), other)
    handle.remove()
    assert torch.equal(run(model, x, MIXED), expected(kind, name))
    attached.detach()
    assert remains(model) == []
    assert torch.equal(run(model, x, MIXED), bare(kind))


@BOTH
def test_nothing_of_ours_is_saved_with_a_model(kind: str, tmp_path: Path) -> None:
    model = tower(kind)
    x = pixels(model, MIXED)
    build("evoprune").attach(model)
    run(model, x, MIXED)
    model.save_pretrained(tmp_path)
    assert "tokenzoo" not in "".join(path.read_text() for path in tmp_path.glob("*.json"))
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert remains(loaded) == []
    assert torch.equal(run(loaded, x, MIXED), bare(kind))


@BOTH
def test_one_image_of_one_group(kind: str) -> None:
    model = tower(kind)
    grids: Grids = ((1, 2, 2),)
    for name in ("evoprune", "tome", "random", "pool"):
        with build(name).attach(model) as attached:
            out = run(model, pixels(model, grids), grids)
            assert attached.counts == (1,) * 5
        assert torch.equal(out, bare(kind, grids=grids))
