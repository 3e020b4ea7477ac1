"""Attaching: what is refused leaves nothing behind, and what is attached comes off again.

Bad arguments and models are in tests/test_bad_calls.py, ways of running in tests/conformance.
"""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torchvision.models import VisionTransformer

import tokenzoo
from tests.adapters.models import GAP, SIGLIP, VIT, gap, images, randomise, traces
from tests.hooks.running import run
from tokenzoo import plugins
from tokenzoo.errors import AttachError, BudgetError, MissingEvidenceError
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.schedules import Skip
from tokenzoo.scorers import CLSAttention


def unfuse(model: Any) -> None:
    for block in model.blocks:
        block.attn.fused_attn = False


def test_parameters_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = copy.deepcopy(VIT.build(depth=2))
    with pytest.raises(AttachError, match="inference mode"):
        tokenzoo.build("evoprune", keep=0.5).attach(model)
    assert traces(model) == []


def test_recipes_that_look_at_no_attention_run_where_it_is_not_fused() -> None:
    model = VIT.build()
    unfuse(model)
    for name in ("uniform", "pool", "random"):
        with tokenzoo.build(name, keep=49).attach(model) as attached:
            run(model, images(model))
            assert attached.counts[-1] == 49
    with pytest.raises(AttachError, match=r"0 fused attention calls.*blocks\.0\.attn"):
        tokenzoo.build("tome").attach(model)
    assert traces(model) == []


@pytest.mark.parametrize("where", ["blocks", "pooling"])
def test_an_attention_that_is_not_fused_and_should_see_masses(where: str) -> None:
    """Nothing is asked of the attention but the bias, and the bias is never left out in silence."""
    model = SIGLIP.build()
    step = tokenzoo.build("pool", keep=50).recipe.steps[0]
    tokenzoo.build(Recipe(step, keep=50, proportional_attention=True)).attach(model)
    run(model, images(model))
    if where == "blocks":
        unfuse(model)
    else:
        model.attn_pool.fused_attn = False
    words = "0 fused attention calls" + (" in the pooling" if where == "pooling" else "")
    with pytest.raises(AttachError, match=words):
        run(model, images(model))
    assert _get_current_function_mode_stack() == []


class FailingPlugin:
    """The proof is passed, everything is installed, and then somebody else's hook raises."""

    @tokenzoo.hookimpl
    def tokenzoo_attached(self, attached: Any) -> None:
        raise ArithmeticError("not mine")


def with_a_failing_plugin(model: Any) -> None:
    with plugins.registered(FailingPlugin()):
        tokenzoo.build("evoprune").attach(model, replace=True)


def without_cls(model: Any) -> None:
    stay = SelectAssign(TopK(CLSAttention()), Drop())
    step = Step(Stage.BLOCK, Skip(), stay, Identity())
    tokenzoo.build(Recipe(step, keep=50)).attach(model, replace=True)


def out_of_reach(model: Any) -> None:
    tokenzoo.build("evoprune", keep=1).attach(model, replace=True)


def failing_the_proof(model: Any) -> None:
    unfuse(model)
    tokenzoo.build("evoprune", keep=50).attach(model, replace=True)


@pytest.mark.parametrize(
    ("attach", "error"),
    [
        (without_cls, MissingEvidenceError),
        (out_of_reach, BudgetError),
        (failing_the_proof, AttachError),
        (with_a_failing_plugin, ArithmeticError),
    ],
)
def test_a_second_recipe_that_cannot_be_leaves_the_first(
    attach: Callable[[Any], None], error: type[Exception]
) -> None:
    model = SIGLIP.build()
    x = images(model)
    bare = run(model, x)
    first = tokenzoo.build("uniform", keep=50).attach(model)
    expected = run(model, x)
    for _ in range(2):
        with pytest.raises(error):
            attach(model)
        assert model._tokenzoo_attached is first
        assert gap(run(model, x), expected) <= 1e-5  # its attention may not be fused any more
        assert first.counts[-1] == 50
    first.detach()
    assert traces(model) == []
    assert gap(run(model, x), bare) <= 1e-5


def test_a_plugin_is_told_once_of_what_is_attached() -> None:
    told: list[Any] = []

    class Plugin:
        @tokenzoo.hookimpl
        def tokenzoo_attached(self, attached: Any) -> None:
            told.append((attached, attached.model, attached.plan().features))

    model = VIT.build()
    with plugins.registered(Plugin()):
        with tokenzoo.build("evoprune", keep=40).attach(model) as attached:
            run(model, images(model))
        with pytest.raises(BudgetError):
            tokenzoo.build("evoprune", keep=1).attach(model)
    assert told == [(attached, model, 40)]


def test_a_plugin_that_fails_leaves_a_bare_model() -> None:
    model = VIT.build()
    x = images(model)
    bare = run(model, x)
    with pytest.raises(ArithmeticError, match="not mine"):
        with_a_failing_plugin(model)
    assert traces(model) == []
    assert torch.equal(run(model, x), bare)


def test_a_recipe_that_was_replaced_can_be_detached_to_no_effect() -> None:
    model = VIT.build()
    first = tokenzoo.build("evoprune", keep=50).attach(model)
    then = tokenzoo.build("tome").attach(model, replace=True)
    assert "detached from" in repr(first)
    assert "attached to" in repr(then)
    first.detach()
    run(model, images(model))
    assert then.counts[-1] == 49
    with pytest.raises(ArithmeticError), then:
        raise ArithmeticError
    assert traces(model) == []


def test_modules_and_parameters_are_the_bare_models() -> None:
    for case in (VIT, SIGLIP):
        model = case.build()

        def inside(model: nn.Module = model) -> list[Any]:
            members = (model.named_modules(), model.named_parameters(), model.named_buffers())
            found = [(name, id(one)) for named in members for name, one in named]
            return [*found, list(model.state_dict())]

        bare = inside()
        for name in ("evoprune", "downsample"):
            with tokenzoo.build(name, keep=0.25).attach(model):
                run(model, images(model))
                assert inside() == bare


def saved_and_loaded(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_and_loaded]
)
def test_a_copy_has_counts_of_its_own_also_of_smaller_images(way: Callable[[Any], Any]) -> None:
    """What a copy computes, with which weights, of all models: tests/conformance/test_ways.py."""
    model = GAP.build()
    x = images(model)
    bare = run(model, x)
    attached = tokenzoo.build("downsample", keep=0.16).attach(model)
    expected = run(model, x)
    twin = way(model)
    mine = twin._tokenzoo_attached
    assert mine.model is twin
    with pytest.raises(AttachError, match="has not run"):
        _ = mine.counts
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(run(twin, x), expected)
    assert mine.counts == attached.counts
    mine.detach()
    assert traces(twin) == []
    assert torch.equal(run(twin, x), bare)


def test_a_pass_within_a_pass() -> None:
    """A hook in the middle of the model runs the same model on another image."""
    model = VIT.build(dynamic_img_size=True)
    x, other = images(model), images(model, seed=1, size=(160, 160))
    tokenzoo.build("tome", keep=0.25).attach(model)
    expected, inner_expected = run(model, x), run(model, other)
    inner: list[Tensor] = []
    calls: list[int] = []

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        calls.append(1)
        if len(calls) == 1:
            inner.append(run(model, other))

    model.blocks[3].register_forward_hook(hook)
    assert torch.equal(run(model, x), expected)
    assert torch.equal(inner[0], inner_expected)


@pytest.mark.parametrize("name", ["evoprune", "tome", "uniform"])
def test_an_empty_batch_and_a_single_token(name: str) -> None:
    model = VIT.build()
    tokenzoo.build(name).attach(model)
    assert run(model, images(model)[:0]).shape == (0, 10)

    tiny = VIT.build(img_size=16)
    x = images(tiny)
    bare = run(tiny, x)
    attached = tokenzoo.build(name).attach(tiny)
    assert gap(run(tiny, x), bare) <= 1e-5
    assert attached.counts == (1,) * 8


def test_a_model_of_any_image_size_has_the_grid_of_the_pass() -> None:
    """The number of tokens does not say which grid they are: 7 x 28 is not 14 x 14."""
    model = VIT.build(dynamic_img_size=True)
    square, flat = images(model), images(model, size=(112, 448))
    attached = tokenzoo.build("pool", keep=0.25).attach(model, trace=True)
    for _ in range(2):
        for x, rows, columns in ((square, 14, 14), (flat, 7, 28)):
            run(model, x)
            assert attached.counts[-1] == 49
            joined = attached.record.dst[0, 1:].view(rows, columns)
            assert torch.equal(joined[0], joined[1])  # a cell is two rows high ...
            assert int(joined[0, 0]) == int(joined[0, 1])  # ... and two or three columns wide
            assert not torch.equal(joined[1], joined[2])


def replica(model: nn.Module, weights: dict[str, Tensor]) -> Any:
    """What nn.DataParallel runs in each of its threads: the same hooks, weights of its own."""
    found = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for path, module in model.named_modules():
        mine = found[module]
        for name, child in module._modules.items():
            mine._modules[name] = None if child is None else found[child]
        for name, parameter in module._parameters.items():
            own = None if parameter is None else weights[f"{path}.{name}".lstrip(".")]
            setattr(mine, name, own)
        mine._former_parameters = OrderedDict()
    return found[model]


def torchvision_vit() -> Any:
    return VisionTransformer(64, 16, 4, 2, 48, 96, num_classes=10).eval()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: VIT.build(depth=4), "evoprune"),
        (lambda: GAP.build(depth=4), "tome"),
        (torchvision_vit, "evoprune"),
    ],
    ids=["token", "mean", "torchvision"],
)
def test_replicas_run_their_own_weights(make: Callable[[], Any], name: str) -> None:
    zoo, model = tokenzoo.build(name, keep=0.3), make()
    assert zoo.attach(nn.DataParallel(model)).model is model
    jobs: list[tuple[Any, Tensor, Tensor]] = []
    for seed in range(3):
        alone = randomise(make(), seed)
        weights = {key: p.detach() for key, p in alone.named_parameters()}
        x = images(model, seed=seed)
        zoo.attach(alone)
        jobs.append((replica(model, weights), x, run(alone, x)))
    wrong: list[Any] = []
    start = threading.Barrier(3)

    def work(model: Any, x: Tensor, expected: Tensor) -> None:
        start.wait()
        try:
            errors = [gap(run(model, x), expected) for _ in range(3)]
            wrong.extend(error for error in errors if not error <= 1e-5)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
