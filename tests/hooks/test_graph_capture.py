"""torch.jit and torch.fx write down a pass: an error says what to use, and nothing is silently bare."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models._features_fx import FeatureGraphNet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.models import gap, traces
from tests.conformance.specs import SPECS, fresh, method
from tokenzoo.errors import AttachError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TOWERS = ("timm ViT", "torchvision", "open_clip", "clip", "dinov2")


def tower(name: str, recipe: str | None = "evoprune") -> tuple[Any, Tensor]:
    """A model with a recipe on it if one is named, and its images."""
    model = fresh(name, 2)
    if recipe is not None:
        method(name, recipe, 30 if recipe == "downsample" else 0.6).attach(model)
    (x,) = SPECS[name].give(model).values()
    return model, x


def refused(*words: str) -> AbstractContextManager[Any]:
    pattern = ".*".join((*words, r"torch\.export", "FlopCounterMode", r"restore=True"))
    return pytest.raises(AttachError, match=f"(?s){pattern}")


def traced(model: nn.Module, x: Tensor) -> Any:
    return torch.jit.trace(model, x, strict=False, check_trace=False)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        *((name, "evoprune") for name in TOWERS),
        ("timm ViT", "fastervlm"),
        ("timm ViT", "downsample"),
    ],
)
def test_a_trace_is_refused(name: str, recipe: str) -> None:
    model, x = tower(name, recipe)
    with refused(r"torch\.jit\.trace"):
        traced(model, x)
    assert model(x) is not None  # it is as it was


def test_a_trace_of_a_whole_model_is_refused_though_its_tower_is_left_alone() -> None:
    model = hf.llava()
    tokenzoo.build("fastv", keep=5).attach(model)
    given = hf.inputs(model, ["see <image>"], [hf.photos()[:1]])
    with refused(r"torch\.jit\.trace"):
        torch.jit.trace(model, example_kwarg_inputs=dict(given), check_trace=False)


def test_a_trace_of_some_blocks_and_what_is_made_of_a_trace() -> None:
    model, x = tower("timm ViT")
    with refused(r"torch\.jit\.trace"):
        traced(model.blocks, torch.randn(1, 50, 48))
    with refused(r"torch\.jit\.trace"):  # as fvcore counts operations
        torch.jit._get_trace_graph(nn.Sequential(model), (x,))
    with refused(r"torch\.jit\.trace"):
        torch.onnx.export(model, (x,), "unwritten.onnx", dynamo=False)


def test_a_paused_model_is_traced_as_it_is() -> None:
    model, x = tower("timm ViT", recipe=None)
    bare = model(x)
    attached = tokenzoo.build("evoprune", keep=30).attach(model)
    model(x)
    with attached.paused():
        program = traced(model, x)
    assert torch.equal(program(x), bare)
    assert attached.counts == (49, 30)  # of a pass, and not of the trace
    attached.detach()
    assert torch.equal(traced(model, x)(x), bare)


@pytest.mark.parametrize("name", ["timm ViT", "torchvision", "clip"])
def test_script_is_refused(name: str) -> None:
    model, _ = tower(name)
    for scripted in (model, nn.Sequential(model), copy.deepcopy(model)):
        with refused(r"torch\.jit\.script"):
            torch.jit.script(scripted)


def test_a_detached_model_is_scripted() -> None:
    model, x = tower("torchvision", recipe=None)
    method("torchvision", "tome").attach(model).detach()
    assert traces(model) == []
    assert gap(torch.jit.script(model)(x), model(x)) <= 1e-6


def test_the_operations_are_counted_by_what_the_error_names() -> None:
    model, x = tower("timm ViT", recipe=None)

    def count() -> int:
        with FlopCounterMode(display=False) as counter:
            model(x)
        return counter.get_total_flops()

    whole = count()
    with tokenzoo.build("random", keep=4).attach(model) as attached:
        # A plan's share is of the blocks alone, and the counter sees the patch embedding, too.
        assert attached.plan().flops < count() / whole < 0.9


GRAPHS = {  # the second block
    "torchvision": "encoder.layers.encoder_layer_1.add_1",
    **dict.fromkeys(("timm ViT", "timm SigLIP", "timm DINOv3"), "blocks.1"),
}


def extracted(model: nn.Module, node: str) -> Any:
    """By torchvision for its own model; by timm, whose leaves are others, for timm's."""
    make: Any = create_feature_extractor
    if not isinstance(model, torchvision.models.VisionTransformer):
        make = timm.models._features_fx.create_feature_extractor
    return make(model, {node: "features"})


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("torchvision", "random"),
        ("timm ViT", "downsample"),
        ("timm SigLIP", "evoprune"),
        ("timm DINOv3", "tome"),
    ],
)
def test_a_graph_of_an_attached_model_is_refused(name: str, recipe: str) -> None:
    model, x = tower(name, recipe)
    with refused(r"torch\.fx", "create_feature_extractor"):
        extracted(model, GRAPHS[name])
    model(x)


def test_other_ways_to_a_graph() -> None:
    model, _ = tower("timm ViT")
    with refused(r"torch\.fx", "FeatureGraphNet"):
        FeatureGraphNet(model, (1,))
    for other in (model, tower("torchvision")[0]):
        with refused(r"torch\.fx"):
            torch.fx.symbolic_trace(other)
    # Layers that are called by hand are no graph.
    assert model.blocks[0].mlp(torch.randn(1, 5, 48)).shape == (1, 5, 48)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_was_made_before_does_not_run_bare(name: str) -> None:
    model, x = tower(name, recipe=None)
    graph = extracted(model, GRAPHS[name])
    bare = graph(x)["features"]
    attached = method(name, "tome", 0.6).attach(model)
    with refused(r"graph of torch\.fx", "made before the recipe was attached"):
        graph(x)
    model(x)
    attached.detach()
    assert torch.equal(graph(x)["features"], bare)


SMALL = torch.randn(1, 4)


@pytest.mark.parametrize(
    "make",
    [
        lambda model: torch.jit.trace(model, SMALL),
        torch.jit.script,
        torch.fx.symbolic_trace,
        lambda model: torch.export.export(model, (SMALL,)).module(),
    ],
    ids=["trace", "script", "fx", "export"],
)
def test_nothing_is_attached_to_a_program(make: Callable[[nn.Module], Any]) -> None:
    with refused("Attach to the model from which it was made"):
        tokenzoo.build("tome", keep=9).attach(make(nn.Linear(4, 4)))
