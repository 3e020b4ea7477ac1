"""Every model of `SPECS` in every way of running: attached, it says what it should."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.adapters.models import gap
from tests.conformance.specs import (
    ALL,
    EACH,
    EVERY,
    LLM,
    SOME,
    SPECS,
    expected,
    fresh,
    method,
    other,
    run,
    same,
    words,
)
from tokenzoo.errors import AttachError


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


def hooked(model: nn.Module) -> list[str]:
    """The modules on which an attachment has hooks."""
    return [
        path
        for path, module in model.named_modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if "tokenzoo" in str(hook)
    ]


# Of whole models, in any padding: test_whole.py.
@pytest.mark.parametrize(("name", "recipe"), [case for case in ALL if not SPECS[case[0]].whole])
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
    if way is copy.deepcopy:  # such a copy could never be detached; PEFT makes them
        deepest = max(reversed(hooked(model)), key=lambda path: path.count("."))
        for part in {deepest, deepest.rpartition(".")[0]} - {""}:
            with pytest.raises(AttachError, match="a part of"):
                copy.deepcopy(model.get_submodule(part))
    twin = way(nn.ModuleDict({"inside": model}))["inside"]
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


def boom(*args: Any, **options: Any) -> None:
    raise BoomError


@EACH
def test_an_error_in_the_middle_leaves_nothing_behind(name: str, recipe: str) -> None:
    model, spec = fresh(name), SPECS[name]
    attached = method(name, recipe).attach(model)
    run(name, model)
    for place in (spec.second, *spec.places):
        handle = model.get_submodule(place).register_forward_hook(boom)
        with pytest.raises(BoomError):
            run(name, model)
        handle.remove()
        same(run(name, model), expected(name, recipe))
    if spec.whole and "paligemma" not in name:  # between two tokens; the next call has no image
        wanted = run(name, model, words())
        with pytest.raises(BoomError):
            model.generate(**spec.give(model), max_new_tokens=2, stopping_criteria=[boom])
        same(run(name, model, words()), wanted)
    attached.detach()
    same(run(name, model), expected(name, None))


@EACH
def test_threads(name: str, recipe: str) -> None:
    """One model in two of them, on images of other sizes if it takes them, and a bare one in the third."""
    model, bare = fresh(name), fresh(name)
    attached = method(name, recipe).attach(model)
    given = SPECS[name].give(model)
    jobs = [(model, given), (model, other(name, model)), (bare, given)]
    ready = threading.Barrier(len(jobs))
    found: dict[int, list[Any]] = {}

    def once(i: int) -> tuple[list[Tensor], Any]:
        out = run(name, *jobs[i])
        passes = () if i == 2 or recipe in LLM else attached.passes
        return out, [(one.tokens, one.counts) for one in passes]

    def work(i: int) -> None:
        ready.wait()
        found[i] = [once(i) for _ in range(2)]

    wanted = [once(i) for i in range(len(jobs))]
    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, (out, counts) in enumerate(wanted):
        assert len(found[i]) == 2
        for one, its_counts in found[i]:
            same(one, out)
            assert its_counts == counts


@EACH
def test_paused_in_one_mode_and_in_inference_mode(name: str, recipe: str) -> None:
    model = fresh(name)
    attached = method(name, recipe).attach(model, when="eval")
    wanted = expected(name, recipe)  # its model is not to be made in inference mode
    with torch.inference_mode():
        same(run(name, model), wanted)
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


DTYPES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    ("name", "recipe", "dtype"), [(*case, DTYPES[i % 2]) for i, case in enumerate(SOME)]
)
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
