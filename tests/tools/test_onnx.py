"""An exported file has the outputs of its model, also on other images; otherwise no file is left."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.adapters.hf.models import llava, pixels, tower
from tests.adapters.hf.vlm.qwen import qwen2_vl
from tests.adapters.models import DINOV3, SIGLIP, VIT, gap, images, traces
from tests.adapters.test_torchvision_vit import open_clip_vit, torchvision_vit
from tokenzoo import Recipe, Stage, Step
from tokenzoo.affinity import Affinity
from tokenzoo.errors import (
    BadArgumentError,
    ExportError,
    MissingDependencyError,
    TokenzooError,
    UnsupportedModelError,
)
from tokenzoo.evidence import Evidence
from tokenzoo.matchers import Alternate, Bipartite, Drop, Protect, SelectAssign, TopK
from tokenzoo.mergers import Identity, WeightedMean
from tokenzoo.parts import PairScorer, Scorer
from tokenzoo.schedules import Once, Skip
from tokenzoo.tools.onnx import Exported, export

runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore")  # torch and its converter warn of their own


def vit() -> Any:
    """Three blocks: what the second leaves out, CLS does not see in the third."""
    return VIT.build(depth=3, img_size=64)


def clip() -> Any:
    """Two blocks: all tokens that are left are in its output."""
    return tower("clip", num_hidden_layers=2, image_size=28)


# timm's ViT is the class of its SigLIP; it is in `test_ties_are_broken_as_here`.
MODELS: dict[str, Callable[[], Any]] = {
    "timm SigLIP": lambda: SIGLIP.build(depth=2, img_size=64),
    "timm DINOv3, rotary, registers": lambda: DINOV3.build(depth=2, img_size=64),
    "torchvision": lambda: torchvision_vit(2, image_size=64),
    "open_clip": lambda: open_clip_vit(2, image_size=64),
    "transformers CLIP": clip,
}
# Recipes whose parts are all that a file may be made of: one between the blocks, one after them, per file.
# Those that are left out have no part of their own, and EvoPrune is in `test_every_family`.
COVERED = {
    "ats": "visionzip",
    "evit": "prumerge",
    "dpcknn": "vispruner",
    "kmedoids": "scope",
    "pitome": "idpruner",
    "random": "holov",
    "tome": "sparsity_similarity",
    "downsample": None,
    "dynamicvit": None,
    "patchmerger": None,
    "sinkhorn": None,
    "sit": None,
}


@dataclass(frozen=True)
class By(Scorer):
    """Scores by any function of the features."""

    function: Callable[[Tensor], Tensor]

    def score(self, evidence: Evidence) -> Tensor:
        return self.function(evidence.x)


TIES = By(lambda x: (x[..., 0] > 0).float())  # two levels
FICKLE = By(lambda x: x[..., 0] * (-1 if torch.onnx.is_in_onnx_export() else 1))
PEEKS = By(lambda x: x[..., 0] * (1 if x.sum() > 0 else -1))  # looks at a value


@dataclass(frozen=True)
class Alike(PairScorer):
    """All pairs tie."""

    def score(self, evidence: Evidence) -> Affinity:
        zero = torch.zeros_like(evidence.x)
        return Affinity(zero, zero)


def selection(scorer: Scorer) -> tokenzoo.Method:
    step = Step(Stage.BLOCK, Skip(0), SelectAssign(TopK(scorer), Drop()), Identity())
    return tokenzoo.build(Recipe(step, keep=9))


def shown(model: Any) -> Any:
    return pixels(model) if hasattr(model, "config") else images(model)


def assert_same(exported: Exported, zoo: tokenzoo.Method, model: Any, x: Tensor) -> None:
    with torch.no_grad():
        bare = model(x)
        with zoo.attach(model):
            expected = model(x)
    if not isinstance(expected, Tensor):
        bare, expected = bare[0], expected[0]
    assert bare.shape != expected.shape or gap(bare, expected) > 1e-3  # there is something to see
    session = runtime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    (found, *_) = session.run(None, {exported.inputs[0]: x.numpy()})
    assert gap(torch.tensor(found), expected) <= 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_every_family(name: str, tmp_path: Any) -> None:
    """With EvoPrune, which watches the attention of the first block and biases that of the second."""
    model = MODELS[name]()
    zoo = tokenzoo.build("evoprune", keep=9, start=0)
    exported = export(zoo, model, shown(model), tmp_path / "out.onnx")
    assert exported.error <= 1e-4
    assert exported.batches == (1, 3)
    assert (exported.tokens, exported.counts[-1]) == (16, 9)
    assert list(tmp_path.iterdir()) == [exported.path]
    assert exported.size == exported.path.stat().st_size
    assert exported.operators["TopK"] >= 1
    assert traces(model) == []
    # A number of images that nobody has tried, and one whose patches are all equal.
    x = shown(model)
    x = x if isinstance(x, Tensor) else x["pixel_values"]
    several = torch.cat([x, torch.full_like(x, 0.5), x[:1] * 2])
    assert_same(exported, zoo, model, several)


def parts(value: Any) -> set[type]:
    """The classes of the parts of a recipe, and of the parts in them."""
    if isinstance(value, list | tuple):
        return set[type]().union(*map(parts, value))
    if not is_dataclass(value):
        return set()
    return {type(value)}.union(*(parts(getattr(value, field.name)) for field in fields(value)))


def test_every_part_is_covered() -> None:
    """A new recipe with a part of its own has to join `COVERED`."""
    names = [*COVERED, *filter(None, COVERED.values()), "evoprune"]
    covered = set[type]().union(*(parts(tokenzoo.build(name).recipe.steps) for name in names))
    for name in {*tokenzoo.list_recipes()} - {"prunesid"}:  # the next test
        with suppress(TokenzooError):  # see `test_what_cannot_be_attached_cannot_be_exported`
            tokenzoo.build(name, keep=9).attach(clip()).detach()
            assert parts(tokenzoo.build(name).recipe.steps) <= covered, name


@pytest.mark.parametrize("attended", [0, 2])
def test_a_file_of_tokens_that_come_back(attended: int, tmp_path: Any) -> None:
    """It needs more blocks than the other recipes here: one before, and one in which they attend."""
    model = tower("clip", num_hidden_layers=4, image_size=28)
    zoo = tokenzoo.build("ipcv", keep=9, layer=1, attended=attended)
    exported = export(zoo, model, shown(model), tmp_path / "out.onnx", dynamic=False)
    assert exported.error <= 1e-4
    assert exported.counts == (16, 9, 9, 9)


def test_a_decomposition_that_onnx_lacks_is_refused(tmp_path: Any) -> None:
    model = clip()
    with pytest.raises(TokenzooError, match=r"cannot convert CLIPVisionModel .*linalg_qr"):
        export(tokenzoo.build("prunesid", keep=9), model, shown(model), tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", COVERED)
def test_a_file_of_every_part(recipe: str, tmp_path: Any) -> None:
    model, path = clip(), tmp_path / "out.onnx"
    made = tokenzoo.build(recipe, keep=9).recipe
    if COVERED[recipe] is not None:
        (after,) = tokenzoo.build(COVERED[recipe]).recipe.steps
        steps = (*made.steps, replace(after, schedule=Once(keep=0.6)))
        made = Recipe(*steps, keep=9, proportional_attention=made.proportional_attention)
    zoo = tokenzoo.build(made)
    if recipe == "downsample" and torch.__version__.startswith("2.11."):
        # Its converter gets an image made smaller wrong.
        with pytest.raises(TokenzooError, match="outputs of CLIPVisionModel differ"):
            export(zoo, model, shown(model), path)
        assert list(tmp_path.iterdir()) == []
        return
    exported = export(zoo, model, shown(model), path, dynamic=False)
    assert exported.error <= 1e-4
    assert exported.batches == (2,)
    assert not exported.dynamic


def test_what_cannot_be_attached_cannot_be_exported(tmp_path: Any) -> None:
    model, zoo = clip(), tokenzoo.build("fastv", keep=9)
    with pytest.raises(TokenzooError) as refused:
        zoo.attach(model)
    with pytest.raises(TokenzooError, match=re.escape(str(refused.value))):
        export(zoo, model, shown(model), tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


MATCHERS = {
    "selection": SelectAssign(TopK(TIES), Drop()),
    "pairs": Bipartite(Alike(), split=Alternate(), protect=Protect(TIES, 0.25, sticky=True)),
}


@pytest.mark.parametrize("match", MATCHERS.values(), ids=MATCHERS)
def test_ties_are_broken_as_here(match: Any, tmp_path: Any) -> None:
    """Scores tie and features do not: another choice would be another output."""
    model = vit()
    zoo = tokenzoo.build(Recipe(Step(Stage.BLOCK, Skip(0, 1), match, WeightedMean()), keep=7))
    exported = export(zoo, model, images(model, batch=4), tmp_path / "out.onnx", dynamic=False)
    assert_same(exported, zoo, model, images(model, batch=4, seed=5))


@pytest.mark.parametrize(
    ("scorer", "named"),
    [
        (FICKLE, r"differ from the model's by \d\.\de"),
        (PEEKS, "torch cannot convert VisionTransformer"),
    ],
)
def test_a_file_that_is_not_right_is_not_left(scorer: Scorer, named: str, tmp_path: Any) -> None:
    path, model = tmp_path / "out.onnx", vit()
    path.write_bytes(b"somebody's")
    with pytest.raises(ExportError, match=named):
        export(selection(scorer), model, images(model), path, dynamic=False)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"somebody's"]
    assert traces(model) == []


def test_of_a_multimodal_model_only_the_tower() -> None:
    x = {"pixel_values": torch.randn(1, 3, 56, 56)}
    for model, named in (
        (llava(), "export its vision tower alone"),
        (qwen2_vl().model.visual, "whose lengths the host looks up"),
    ):
        with pytest.raises(UnsupportedModelError, match=named):
            export(tokenzoo.build("evoprune", keep=36), model, x, "out.onnx")


IMAGE = torch.zeros(1, 3, 64, 64)


@pytest.mark.parametrize(
    ("change", "example", "named"),
    [
        (lambda m: m.train(), IMAGE, "call eval"),
        (lambda m: m.bfloat16(), IMAGE, "torch.bfloat16"),
        (lambda m: m, IMAGE[:0], "at least one image"),
        (lambda m: m, {"x": [1]}, "a tensor"),
        (lambda m: m, {}, "a tensor"),
    ],
)
def test_bad_calls(change: Any, example: Any, named: str) -> None:
    with pytest.raises(BadArgumentError, match=named):
        export(selection(TIES), change(vit()), example, "out.onnx")


def test_what_is_missing_has_its_extra(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tokenzoo\[onnx\]'"):
        export(selection(TIES), vit(), IMAGE, "out.onnx")
