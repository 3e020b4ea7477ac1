"""torch.jit and torch.fx write down a pass: an error says what to use, and nothing is silently bare."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import open_clip
import pytest
import timm
import torch
import torchvision
import transformers
from timm.models._features_fx import FeatureGraphNet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.models import DINOV3, SIGLIP, VIT, gap, randomise, traces
from tests.adapters.models import one_thread as one_thread
from tokenzoo.errors import AttachError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZE |= {"num_attention_heads": 2, "image_size": 64, "patch_size": 16}
TOWERS: dict[str, Callable[[], Any]] = {
    "timm": lambda: VIT.build(depth=2, img_size=64),
    "torchvision": lambda: torchvision.models.VisionTransformer(64, 16, 2, 2, 32, 64),
    "open_clip": lambda: open_clip.transformer.VisionTransformer(64, 16, 32, 2, 2, 2.0),
    "clip": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZE)),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZE)),
}
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def tower(name: str, recipe: str = "evoprune") -> Any:
    model = randomise(TOWERS[name]()).eval()
    tokenzoo.build(recipe, keep=9).attach(model)
    return model


def refused(*words: str) -> AbstractContextManager[Any]:
    pattern = ".*".join((*words, r"torch\.export", "FlopCounterMode", r"restore=True"))
    return pytest.raises(AttachError, match=f"(?s){pattern}")


def traced(model: nn.Module, *inputs: Any) -> Any:
    return torch.jit.trace(model, inputs or (X,), strict=False, check_trace=False)


# ------------------------------------------------------------------------------------ torch.jit


@pytest.mark.parametrize("name", TOWERS)
def test_a_trace_is_refused(name: str) -> None:
    model = tower(name)
    with refused(r"torch\.jit\.trace"):
        traced(model)
    assert model(X) is not None  # it is as it was


@pytest.mark.parametrize("recipe", ["tome", "fastervlm", "downsample"])
def test_a_trace_is_refused_at_every_stage_of_a_tower(recipe: str) -> None:
    with refused(r"torch\.jit\.trace"):
        traced(tower("timm", recipe))


def test_a_trace_of_a_whole_model_is_refused_though_its_tower_is_left_alone() -> None:
    model = hf.llava()
    tokenzoo.build("fastv", keep=5).attach(model)
    given = hf.inputs(model, ["see <image>"], [hf.photos()[:1]])
    with refused(r"torch\.jit\.trace"):
        torch.jit.trace(model, example_kwarg_inputs=dict(given), check_trace=False)


def test_a_trace_of_some_blocks_and_what_is_made_of_a_trace() -> None:
    model = tower("timm")
    with refused(r"torch\.jit\.trace"):
        traced(model.blocks, torch.randn(1, 17, 48))
    with refused(r"torch\.jit\.trace"):  # as fvcore counts operations
        torch.jit._get_trace_graph(nn.Sequential(model), (X,))
    with refused(r"torch\.jit\.trace"):
        torch.onnx.export(model, (X,), "unwritten.onnx", dynamo=False)


def test_a_paused_model_is_traced_as_it_is() -> None:
    model = VIT.build(depth=2, img_size=64)
    bare = model(X)
    attached = tokenzoo.build("evoprune", keep=9).attach(model)
    with attached.paused():
        program = traced(model)
    assert torch.equal(program(X), bare)
    model(X)
    assert attached.counts == (16, 9)  # of a pass, and not of the trace
    with attached.paused():
        traced(model)
    assert attached.counts == (16, 9)
    attached.detach()
    assert torch.equal(traced(model)(X), bare)


@pytest.mark.parametrize("name", ["timm", "torchvision", "clip"])
def test_script_is_refused(name: str) -> None:
    model = tower(name)
    for scripted in (model, nn.Sequential(model), copy.deepcopy(model)):
        with refused(r"torch\.jit\.script"):
            torch.jit.script(scripted)


def test_a_detached_model_is_scripted() -> None:
    model = randomise(TOWERS["torchvision"]()).eval()
    with tokenzoo.build("tome", keep=9).attach(model):
        pass
    assert traces(model) == []
    assert gap(torch.jit.script(model)(X), model(X)) <= 1e-6


def test_the_operations_are_counted_by_what_the_error_names() -> None:
    model = VIT.build(depth=2, img_size=64)

    def count() -> int:
        with FlopCounterMode(display=False) as counter:
            model(X)
        return counter.get_total_flops()

    whole = count()
    with tokenzoo.build("random", keep=4).attach(model) as attached:
        # A plan's share is of the blocks alone, and the counter sees the patch embedding, too.
        assert attached.plan().flops < count() / whole < 0.9


# ------------------------------------------------------------------------------------- torch.fx

GRAPHS: dict[str, tuple[Callable[[], Any], str]] = {
    "torchvision": (TOWERS["torchvision"], "encoder.layers.encoder_layer_1.add_1"),
    "timm": (TOWERS["timm"], "blocks.1"),
    "siglip": (lambda: SIGLIP.build(depth=2, img_size=64), "blocks.1"),
    "dinov3": (lambda: DINOV3.build(depth=2, img_size=64), "blocks.1"),
}


def extracted(model: nn.Module, node: str) -> Any:
    """By torchvision for its own model; by timm, whose leaves are others, for timm's."""
    make: Any = create_feature_extractor
    if not isinstance(model, torchvision.models.VisionTransformer):
        make = timm.models._features_fx.create_feature_extractor
    return make(model, {node: "features"})


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("recipe", ["evoprune", "random", "downsample"])
def test_a_graph_of_an_attached_model_is_refused(name: str, recipe: str) -> None:
    make, node = GRAPHS[name]
    if (name, recipe) == ("torchvision", "downsample"):
        return  # its positions fit one size alone
    model = make().eval()
    tokenzoo.build(recipe, keep=9).attach(model)
    with refused(r"torch\.fx", "create_feature_extractor"):
        extracted(model, node)
    model(X)


def test_other_ways_to_a_graph() -> None:
    model = tower("timm")
    with refused(r"torch\.fx", "FeatureGraphNet"):
        FeatureGraphNet(model, (1,))
    with refused(r"torch\.fx"):
        torch.fx.symbolic_trace(model)
    with refused(r"torch\.fx"):
        torch.fx.symbolic_trace(tower("torchvision"))


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_was_made_before_does_not_run_bare(name: str) -> None:
    make, node = GRAPHS[name]
    model = randomise(make()).eval()
    graph = extracted(model, node)
    bare = graph(X)["features"]
    attached = tokenzoo.build("tome", keep=9).attach(model)
    with refused(r"graph of torch\.fx", "made before the recipe was attached"):
        graph(X)
    model(X)
    attached.detach()
    assert torch.equal(graph(X)["features"], bare)


def test_layers_that_are_called_by_hand_are_no_graph() -> None:
    model = tower("timm")
    assert model.blocks[0].mlp(torch.randn(1, 5, 48)).shape == (1, 5, 48)


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
