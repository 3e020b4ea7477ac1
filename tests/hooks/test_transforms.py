"""Inside the transforms of torch.func: each image by itself gives what it gives in a loop."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap
from torch.utils._pytree import tree_map

import tokenzoo
from tests.adapters.models import gap, images
from tests.compiling import clean_compiler as clean_compiler
from tests.conformance.specs import SPECS, fresh
from tests.hooks.running import pooled, tiny
from tokenzoo import Recipe
from tokenzoo.errors import AttachError, BadArgumentError
from tokenzoo.testing.example import ABOUT_TEXT, PER_TOKEN, Example

SHOWN = [name for name in (*PER_TOKEN, *ABOUT_TEXT) if name not in ("mass", "protected")]
EXAMPLE = Example.drawn(images=3, grid=(4, 5), dtype=torch.float32)
STEPS = [
    (name, index)
    for name in tokenzoo.list_recipes()
    for index, _ in enumerate(tokenzoo.build(name).recipe.steps)
]


def draws(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def looped(call: Callable[..., Any], *batches: Any) -> list[Tensor]:
    """What `vmap(call)` is to give, one image after another."""
    single = [tree_map(lambda t, i=i: t[i], batches) for i in range(3)]
    return [torch.stack(parts) for parts in zip(*(call(*one) for one in single), strict=True)]


@pytest.mark.parametrize(("name", "index"), STEPS)
def test_a_recipe_reduces_each_image_inside_vmap(name: str, index: int) -> None:
    recipe = Recipe(tokenzoo.build(name).recipe.steps[index], keep=0.5)
    alone = EXAMPLE.image(0)
    alone = replace(alone, mass=torch.ones_like(alone.mass))
    shown = {name: getattr(EXAMPLE, name) for name in SHOWN}

    def call(shown: dict[str, Tensor]) -> tuple[Tensor, ...]:
        example = replace(alone, **{key: value[None] for key, value in shown.items()})
        reduced = example.reduce(recipe)
        return reduced.x[0], reduced.mass[0], reduced.plan.keep[0], reduced.plan.dst[0]

    for found, wanted in zip(vmap(call)(shown), looped(call, shown), strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)
    rows = vmap(jacrev(lambda shown: call(shown)[0].sum(0)))(shown)["x"]
    (wanted,) = looped(lambda shown: [jacrev(lambda s: call(s)[0].sum(0))(shown)["x"]], shown)
    assert gap(rows, wanted) <= 1e-5


def test_forms_that_write_into_buffers_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tokens, and a small cache: outside of a transform all of these work in pieces."""
    monkeypatch.setattr(sys.modules["tokenzoo.kernels.best_match"], "CACHED", 2**12)
    x, queries = draws(3, 400, 4), draws(3, 1, 400, 8)
    zoo = tokenzoo.build("evoprune", keep=0.7)

    def call(x: Tensor, queries: Tensor) -> tuple[Tensor, ...]:
        reduced = zoo.reduce(x[None], keys=queries[None], queries=queries[None])
        return reduced.x[0], reduced.plan.dst[0]

    wanted, plans = looped(call, x, queries)
    found, found_plans = vmap(call)(x, queries)
    assert torch.equal(found_plans, plans)
    assert gap(found, wanted) <= 1e-5


def test_what_looks_at_values_says_so() -> None:
    x = draws(3, 6, 4)
    protected = torch.zeros(1, 6, dtype=torch.bool)
    zoo = tokenzoo.build("divprune", keep=3)
    with pytest.raises(BadArgumentError, match=r"protected= inside a transform of torch\.func"):
        vmap(lambda one: zoo.reduce(one[None], protected=protected).x)(x)
    model = tiny(img_size=32)
    with (
        tokenzoo.build("tome", keep=2).attach(model, debug=True),
        pytest.raises(AttachError, match=r"debug=True .* transform of torch\.func"),
    ):
        vmap(lambda one: model(one[None])[0])(images(model))


TOWERS = ("timm ViT", "timm SigLIP", "timm DINOv3", "timm BEiT", "torchvision", "clip")
TRIED = [
    ("timm ViT", name)
    for name in tokenzoo.list_recipes()
    for step in tokenzoo.build(name).recipe.steps
    if step.stage.name in ("image", "block", "features")
    and "text" not in step.needs
    and not any("@" in need for need in step.needs)  # of a layer that the towers here do not have
    and tokenzoo.build(name).recipe.steps[-1].stage.name not in ("projected", "llm")
]
TRIED += [(tower, name) for tower in TOWERS[1:] for name in ("evoprune", "tome")]


@pytest.mark.parametrize(("tower", "name"), TRIED)
def test_gradients_of_each_image_of_an_attached_model(tower: str, name: str) -> None:
    # ipcv names block 3.
    model, spec = fresh(tower, 4 if name == "ipcv" else 3), SPECS[tower]
    ((argument, x),) = spec.give(model).items()
    attached = tokenzoo.build(name, keep=0.5).attach(model)
    parameters = {key: value.detach() for key, value in model.named_parameters()}

    def logits(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        out = functional_call(model, parameters, (), {argument: image[None]})
        return pooled(spec.read(out))[0]

    (wanted,) = looped(lambda image: [logits(parameters, image)], x)
    counts = attached.counts
    # With parameters that learn, too: torch's own vmap of the attention depends on that.
    found = vmap(lambda image: logits(dict(model.named_parameters()), image))(x)
    assert gap(found, wanted) <= 1e-5
    assert attached.counts == counts == attached.plan().blocks

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return logits(parameters, image).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for index, image in enumerate(x):
        model.zero_grad()
        loss(dict(model.named_parameters()), image).backward()
        for key, parameter in model.named_parameters():
            if parameter.grad is not None:
                error = (each[key][index] - parameter.grad).abs().max()
                assert error <= 1e-4 * parameter.grad.abs().max().clamp_min(1e-2), key


def test_several_models_at_once_inside_vmap() -> None:
    model = tiny(depth=3)
    x = images(model)
    tokenzoo.build("evoprune", keep=0.5).attach(model)
    one = {key: value.detach() for key, value in model.named_parameters()}
    stacked = {key: torch.stack([value, 1.1 * value]) for key, value in one.items()}
    found = vmap(lambda parameters: functional_call(model, parameters, (x,)))(stacked)
    for index in range(2):
        own = {key: value[index] for key, value in stacked.items()}
        assert gap(found[index], functional_call(model, own, (x,))) <= 1e-5


@pytest.mark.parametrize("wrap", [lambda call: call, lambda call: grad(lambda x: call(x).sum())])
def test_a_transform_keeps_counts_and_no_tensors(wrap: Any) -> None:
    """Its tensors have no meaning outside: what was seen last is then an error of ours."""
    model = tiny()
    x = images(model)
    attached = tokenzoo.build("tome", keep=8).attach(model, trace=True)
    vmap(wrap(lambda image: model(image[None])[0]))(x)
    assert attached.counts[-1] == 8
    assert "last pass" in attached.summary()
    for name in ("mass", "record"):
        with pytest.raises(AttachError, match=r"inside a transform of torch\.func"):
            getattr(attached, name)
    model(x)
    assert attached.mass.shape == (2, 9)
    assert attached.record.kept == 9


@pytest.mark.usefixtures("clean_compiler")
def test_a_compiled_vmap_is_the_vmap() -> None:
    """No batched tensor is an output of the graph."""
    model = tiny()
    x = images(model, 3)
    attached = tokenzoo.build("tome", keep=8).attach(model)

    def call(x: Tensor) -> Tensor:
        return vmap(lambda image: model(image[None])[0])(x)

    with torch.no_grad():
        wanted = call(x)
        found = torch.compile(call, backend="aot_eager", fullgraph=True)(x)
    assert gap(found, wanted) <= 1e-5
    assert attached.counts == attached.plan().blocks
