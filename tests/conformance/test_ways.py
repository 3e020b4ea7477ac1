"""Every model of `SPECS` in every way of running: attached, it says what it should."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn

import tokenzoo
from tests.adapters.models import gap
from tests.adapters.models import one_thread as one_thread
from tests.conformance.specs import SPECS, expected, fresh, method, run

# Every recipe of every model, for what depends on both; for the ways of running, each model with one of
# its recipes in turn, and LLaVA with all of them: they work in its tower, after its projector, in its LLM.
ALL = [(name, recipe) for name, spec in SPECS.items() for recipe in spec.recipes]
SOME = [
    (name, recipe)
    for i, (name, spec) in enumerate(SPECS.items())
    for recipe in (spec.recipes if name == "llava" else [spec.recipes[i % len(spec.recipes)]])
]
EVERY = pytest.mark.parametrize(("name", "recipe"), ALL)
EACH = pytest.mark.parametrize(("name", "recipe"), SOME)


LLM = ("fastv",)  # no pass of a tower has fewer tokens


def same(found: list[Tensor], wanted: list[Tensor], tolerance: float = 0.0) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert (
            torch.equal(one, other)
            if tolerance == 0
            else gap(one.float(), other.float()) <= tolerance
        )


def state(model: nn.Module) -> dict[str, Any]:
    """Attributes, hooks and attention of all modules: what an attachment adds and takes away."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        found[path] = sorted(vars(module))
        for key, value in vars(module).items():
            if "hooks" in key and isinstance(value, dict):
                found[f"{path}.{key}"] = list(value)
        attention = getattr(getattr(module, "config", None), "_attn_implementation", None)
        found[f"{path} attention"] = attention
    return found


@EVERY
def test_keeping_all_changes_nothing(name: str, recipe: str) -> None:
    model = fresh(name)
    with method(name, recipe, 1.0).attach(model) as attached:
        same(run(name, model), expected(name, None), 1e-5)
        if SPECS[name].tokens is not None:
            assert attached.counts == (SPECS[name].tokens,) * 5


@EVERY
def test_counts_are_those_planned_and_nothing_is_left(name: str, recipe: str) -> None:
    model = fresh(name)
    run(name, model)  # transformers has hooks of its own from the first run on
    before = state(model)
    with method(name, recipe).attach(model) as attached:
        found = run(name, model)
        for one in () if recipe in LLM else attached.passes:
            plan = attached.plan(one.tokens)
            assert (one.counts, one.features) == (plan.blocks, plan.visual)
            if one.mass is not None and recipe in ("evoprune", "tome"):  # they drop nothing
                total = torch.full(
                    (len(one.mass),), one.mass.shape[1] - plan.blocks[-1] + one.tokens
                )
                assert torch.allclose(one.mass.sum(1), total.float())
    same(found, expected(name, recipe))
    whole = expected(name, None)[0]
    if recipe != "visionzip":  # CLS has seen all tokens
        assert found[0].shape != whole.shape or gap(found[0], whole) > 1e-3
    assert state(model) == before
    same(run(name, model), expected(name, None))


@pytest.mark.parametrize(("name", "recipe"), [case for case in ALL if SPECS[case[0]].tokens])
def test_an_image_alone_is_the_image_in_a_batch(name: str, recipe: str) -> None:
    model = fresh(name)
    method(name, recipe).attach(model)
    given = {key: value[1:2] for key, value in SPECS[name].give(model).items()}
    same(run(name, model, given), [out[1:2] for out in expected(name, recipe)], 1e-5)


@EACH
def test_again_and_again(name: str, recipe: str) -> None:
    model = fresh(name)
    for _ in range(2):
        with method(name, recipe).attach(model):
            for _ in range(2):
                same(run(name, model), expected(name, recipe))
        same(run(name, model), expected(name, None))
    method(name, SPECS[name].recipes[0]).attach(model)
    attached = method(name, recipe).attach(model, replace=True)
    same(run(name, model), expected(name, recipe))
    attached.detach()
    same(run(name, model), expected(name, None))


@EACH
@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_attached_to_itself(name: str, recipe: str, way: Callable[[Any], Any]) -> None:
    model = fresh(name)
    attached = method(name, recipe).attach(model)
    twin = way(model)
    assert twin._tokenzoo_attached.model is twin
    attached.detach()
    same(run(name, model), expected(name, None))
    same(run(name, twin), expected(name, recipe))
    with torch.no_grad():  # its own weights, and no others
        for parameter in model.parameters():
            parameter.zero_()
    same(run(name, twin), expected(name, recipe))
    twin._tokenzoo_attached.detach()
    same(run(name, twin), expected(name, None))


class BoomError(Exception):
    """An error of somebody else."""


@EACH
def test_an_error_in_the_middle_leaves_nothing_behind(name: str, recipe: str) -> None:
    model, spec = fresh(name), SPECS[name]
    attached = method(name, recipe).attach(model)
    run(name, model)

    def boom(*args: Any) -> None:
        raise BoomError

    for place in (spec.second, *spec.places):
        handle = model.get_submodule(place).register_forward_hook(boom)
        with pytest.raises(BoomError):
            run(name, model)
        handle.remove()
        same(run(name, model), expected(name, recipe))
    attached.detach()
    same(run(name, model), expected(name, None))


@EACH
def test_threads(name: str, recipe: str) -> None:
    """One model in two of them, and a bare one in the third."""
    model, bare = fresh(name), fresh(name)
    method(name, recipe).attach(model)
    wanted = [(model, recipe), (model, recipe), (bare, None)]
    found: dict[int, list[Tensor]] = {}

    def work(i: int) -> None:
        found[i] = [run(name, wanted[i][0]) for _ in range(3)][-1]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, (_, which) in enumerate(wanted):
        same(found[i], expected(name, which))


@EACH
def test_paused_in_one_mode_and_in_inference_mode(name: str, recipe: str) -> None:
    model = fresh(name)
    attached = method(name, recipe).attach(model, when="eval")
    with torch.inference_mode():
        same(run(name, model), expected(name, recipe))
    with attached.paused():
        same(run(name, model), expected(name, None))
    model.train()
    assert not attached.active
    model.eval()
    same(run(name, model), expected(name, recipe))


@EACH
def test_autocast_leaves_nothing_behind(name: str, recipe: str) -> None:
    model = fresh(name)
    method(name, recipe).attach(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(name, model)
    assert found[0].shape == expected(name, recipe)[0].shape
    assert found[0].isfinite().all()
    same(run(name, model), expected(name, recipe))


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(name: str, recipe: str, dtype: torch.dtype) -> None:
    """Rounding may change a choice: what must not change is counted."""
    model = fresh(name).to(dtype)
    given = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in SPECS[name].give(model).items()
    }
    try:
        bare = run(name, model, given)
    except RuntimeError as error:  # timm 1.0.23: rotary angles by head, in half precision
        pytest.skip(f"the bare model does not run: {error}")
    with method(name, recipe).attach(model) as attached:
        found = run(name, model, given)
        for one in () if recipe in LLM else attached.passes:
            assert one.counts == attached.plan(one.tokens).blocks
            assert one.mass is None or one.mass.dtype == torch.float32
    assert found[0].dtype == dtype
    assert found[0].shape == expected(name, recipe)[0].shape
    assert found[0].isfinite().all()
    same(run(name, model, given), bare)
    with method(name, recipe, 1.0).attach(model):
        same(run(name, model, given)[:1], bare[:1], 0.02)


def gradients(name: str, model: Any) -> dict[str, Tensor]:
    """Of two forwards and one backward."""
    model.zero_grad()
    given, read = SPECS[name].give(model), SPECS[name].read
    floats = {key: -value if value.is_floating_point() else value for key, value in given.items()}
    outs = [read(model(**one)) for one in (given, floats)]
    weights = torch.randn(outs[0].shape, generator=torch.Generator().manual_seed(0))
    torch.stack([(out * weights).mean() for out in outs]).sum().backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("name", "recipe"), [case for case in SOME if SPECS[case[0]].checkpoint])
def test_checkpointing_changes_no_gradient(name: str, recipe: str) -> None:
    model, spec = fresh(name).train(), SPECS[name]
    if name == "dinov3_vit":  # its positions shift at random in training
        model.config.pos_embed_rescale = None
    method(name, recipe).attach(model)
    plain = gradients(name, model)
    assert all(bool(grad.isfinite().all()) for grad in plain.values())
    runs: list[int] = []
    model.get_submodule(spec.second).register_forward_pre_hook(lambda *_: runs.append(1))
    assert spec.checkpoint is not None
    spec.checkpoint(model)
    found = gradients(name, model)
    assert len(runs) == 4  # it really recomputes
    assert found.keys() == plain.keys()
    for key, grad in plain.items():
        most = 1e-5 * float(grad.abs().max()) + 1e-12
        assert torch.allclose(found[key], grad, rtol=1e-4, atol=most), key


def on_disk(model: Any, folder: Path) -> None:
    accelerate.disk_offload(model, folder, torch.device("cpu"))


def off_device(model: Any, folder: Path) -> None:
    del folder
    accelerate.cpu_offload(model, torch.device("cpu"))


def per_block(model: Any, folder: Path) -> None:
    """As a device_map does it: a hook of accelerate on every block, which moves its weights."""
    del folder
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    for path, module in list(model.named_modules()):
        if path.rpartition(".")[2].isdigit():
            start = f"{path}."
            inside = {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}
            hook = AlignDevicesHook(
                execution_device=torch.device("cpu"),
                offload=True,
                place_submodules=True,
                weights_map=inside,
            )
            add_hook_to_module(module, hook)


@pytest.mark.parametrize(("name", "recipe"), [case for case in SOME if SPECS[case[0]].offloads])
@pytest.mark.parametrize("offload", [on_disk, off_device, per_block])
@pytest.mark.parametrize("first", ["attach", "offload"])
def test_offloaded_by_accelerate(
    name: str, recipe: str, offload: Callable[[Any, Path], None], first: str, tmp_path: Path
) -> None:
    model = fresh(name)
    if first == "offload":
        offload(model, tmp_path)
    with method(name, recipe).attach(model):
        if first == "attach":
            offload(model, tmp_path)
        assert any(parameter.is_meta for parameter in model.parameters())
        same(run(name, model), expected(name, recipe), 1e-6)
    same(run(name, model), expected(name, None), 1e-6)


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.compiles])
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
def test_compiled_and_exported(name: str) -> None:
    """Zero graph breaks: fullgraph=True would raise at the first.

    EvoPrune watches the attention of the first block and biases that of the second. In eager mode torch
    has a faster path of its own for torchvision's blocks: 1e-4, not 1e-5.
    """
    model, spec = fresh(name, 2), SPECS[name]
    tokenzoo.build("evoprune", keep=0.6, start=0).attach(model)
    given = spec.give(model)
    other = {
        key: value.flip(0) if value.is_floating_point() else value for key, value in given.items()
    }
    wanted = [run(name, model, one) for one in (given, other)]
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        exported = torch.export.export(model, (), dict(given)).module()
    for one, out in zip((given, other), wanted, strict=True):
        for made in (compiled, exported):
            same(run(name, made, one), out, 1e-4)
    torch.compiler.reset()


@pytest.mark.parametrize(("name", "recipe"), [case for case in SOME if SPECS[case[0]].whole])
def test_saved_is_the_bare_model(name: str, recipe: str, tmp_path: Path) -> None:
    model = fresh(name)
    model.save_pretrained(tmp_path / "bare")
    method(name, recipe).attach(model)
    run(name, model)
    model.save_pretrained(tmp_path / "attached")
    files = sorted(path.name for path in (tmp_path / "bare").iterdir())
    assert sorted(path.name for path in (tmp_path / "attached").iterdir()) == files
    for file in files:
        bare = (tmp_path / "bare" / file).read_bytes()
        assert (tmp_path / "attached" / file).read_bytes() == bare, file
    again = type(model).from_pretrained(tmp_path / "attached").eval()
    same(run(name, again), expected(name, None))
