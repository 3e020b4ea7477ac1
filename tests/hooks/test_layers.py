"""Steps after the last block with evidence of other blocks, such as `cls_attention@-2`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.adapters.hf.models import inputs, llava, photos, pixels, tower
from tests.adapters.hf.vlm import plain_qwen as plain
from tests.adapters.hf.vlm.qwen import batch as batch_of
from tests.adapters.hf.vlm.qwen import pixels as pixels_of
from tests.adapters.hf.vlm.qwen import qwen2_5_vl, qwen2_vl
from tests.adapters.models import SIGLIP, VIT, gap, images
from tests.adapters.models import one_thread as one_thread
from tokenzoo import Recipe, Step
from tokenzoo.errors import MissingEvidenceError
from tokenzoo.evidence import Evidence
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.parts import Scorer
from tokenzoo.recipe import Stage
from tokenzoo.schedules import Once
from tokenzoo.scorers import CLSAttention, ReceivedAttention


@dataclass
class Seen(Scorer):
    """Scores by one layer's evidence, and remembers what it was shown."""

    name: str
    layer: int | str
    shown: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.require(f"{self.name}@{self.layer}")

    def score(self, evidence: Evidence) -> Tensor:
        value = getattr(evidence.at(self.layer), self.name)
        self.shown.append(value)
        return value if value.ndim == 2 else value.mean(1)


def dropping(scorer: Any, stage: Any = Stage.FEATURES, keep: float = 1.0) -> Step:
    return Step(stage, Once(keep=keep), SelectAssign(TopK(scorer), Drop()), Identity())


def attention(model: Any, index: int, x: Tensor) -> Tensor:
    """The map of one block of a bare timm ViT, `[b, h, n, n]`."""
    found: list[Tensor] = []
    block = model.blocks[index].attn

    def look(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        b, n, _ = args[0].shape
        qkv = module.qkv(args[0]).view(b, n, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = module.q_norm(qkv[0]), module.k_norm(qkv[1])
        found.append((q * module.scale @ k.mT).softmax(-1))

    handle = block.register_forward_hook(look)
    with torch.inference_mode():
        model(x)
    handle.remove()
    return found[0]


@pytest.mark.parametrize(("layer", "block"), [(1, 1), (-2, -2), (0, 0), (-1, -1)])
def test_a_step_at_the_features_sees_another_block(layer: int, block: int) -> None:
    model = VIT.build()
    x = images(model)
    depth = len(model.blocks)
    expected = attention(model, block % depth, x)[:, :, 0, 1:]  # CLS to the patches
    bare = model(x)
    scorer = Seen("cls_attention", layer)
    recipe = Recipe(dropping(scorer), keep=20)
    with tokenzoo.build(recipe).attach(model) as attached, torch.inference_mode():
        scorer.shown.clear()
        model(x)
        (found,) = scorer.shown
        assert attached.features == 20
        # What is before the block that is looked at is left alone.
        assert attached._passes.sites() == range(block % depth, depth)
    assert gap(found, expected) <= 1e-5
    assert torch.equal(model(x), bare)


def test_it_travels_through_the_reductions_in_between() -> None:
    """Each token that is left has the score of the token that it stands for."""
    model = VIT.build()
    x = images(model)
    whole = attention(model, 1, x)[:, :, 0, 1:].mean(1)  # [b, n]
    scorer = Seen("cls_attention", 1)
    first = tokenzoo.build("tome", keep=60).recipe.steps[0]
    both = Recipe(
        Step(Stage.BLOCK, Once(2, keep=3.0), first.matcher, first.merger),
        dropping(scorer, keep=1.0),
        keep=40,
    )
    with tokenzoo.build(both).attach(model, trace=True) as attached, torch.inference_mode():
        scorer.shown.clear()
        model(x)
        (found,) = scorer.shown
        counts = attached.counts
    assert counts[-1] == found.shape[2] == 120
    assert attached.features == 40
    # The scores of 120 of the 196 tokens, as they are left by block 2, whose
    # plan is the record of a run without the second step.
    alone = Recipe(Step(Stage.BLOCK, Once(2), first.matcher, first.merger), keep=120)
    with tokenzoo.build(alone).attach(model, trace=True) as attached, torch.inference_mode():
        model(x)
        keep = attached.record.keep[:, 1:] - 1
    assert gap(found.mean(1), whole.gather(1, keep)) <= 1e-5


def test_values_and_depth_are_shown_in_blocks() -> None:
    model = SIGLIP.build()
    x = images(model)
    depths: list[float] = []
    shapes: list[tuple[int, ...]] = []

    class Reads(Scorer):
        needs = frozenset({"values", "depth"})

        def score(self, evidence: Evidence) -> Tensor:
            depths.append(evidence.depth)
            shapes.append(tuple(evidence.values.shape))
            return evidence.values.square().sum((1, 3))

    step = tokenzoo.build("tome").recipe.steps[0]
    recipe = Recipe(
        Step(Stage.BLOCK, step.schedule, SelectAssign(TopK(Reads()), Drop()), Identity()), keep=100
    )
    with tokenzoo.build(recipe).attach(model), torch.inference_mode():
        model(x)
    depth = len(model.blocks)
    assert depths == [i / depth for i in range(depth)]
    heads = model.blocks[0].attn.num_heads
    assert {(b, h) for b, h, _, _ in shapes} == {(2, heads)}
    assert shapes[0][2] == 196


def test_a_tower_of_transformers_counts_all_its_blocks() -> None:
    model = tower("clip", num_hidden_layers=4)
    given = pixels(model)
    scorer = Seen("cls_attention", -2)
    with torch.inference_mode():
        eager = tower("clip", num_hidden_layers=4, attn_implementation="eager")
        maps = eager(**given, output_attentions=True).attentions
        with tokenzoo.build(Recipe(dropping(scorer), keep=7)).attach(model):
            scorer.shown.clear()
            model(**given)
    (found,) = scorer.shown
    assert gap(found, maps[2][:, :, 0, 1:]) <= 1e-5


@pytest.mark.parametrize("name", [-2, 1])
def test_a_llava_selects_after_its_projector_by_another_block(name: int) -> None:
    model = llava()
    given = inputs(model, "<image> what is it", [photos()[:1]])
    scorer = Seen("cls_attention", name)
    step = dropping(scorer, Stage.PROJECTED)
    with tokenzoo.build(Recipe(step, keep=5)).attach(model) as attached, torch.inference_mode():
        scorer.shown.clear()
        model(**given)
        (found,) = scorer.shown
        assert attached.features == 5
    bare = attached.adapter.tower.model
    watched = Seen("cls_attention", name)
    with (
        tokenzoo.build(Recipe(dropping(watched), keep=5)).attach(bare),
        torch.inference_mode(),
    ):
        watched.shown.clear()
        bare(given["pixel_values"])
    assert gap(found, watched.shown[0]) <= 1e-5


def _no_cls() -> tuple[Any, Recipe]:
    return SIGLIP.build(), Recipe(dropping(CLSAttention(layer=-2)), keep=5)


def _no_such_block() -> tuple[Any, Recipe]:
    return VIT.build(), Recipe(dropping(CLSAttention(layer=77)), keep=5)


def _no_number() -> tuple[Any, Recipe]:
    return VIT.build(), Recipe(dropping(CLSAttention(layer="clip")), keep=5)


def _in_a_block() -> tuple[Any, Recipe]:
    step = Step(Stage.BLOCK, Once(3), SelectAssign(TopK(CLSAttention(layer=1)), Drop()), Identity())
    return VIT.build(), Recipe(step, keep=50)


def _not_read() -> tuple[Any, Recipe]:
    # A LLaVA reads the last but one of its tower's layers.
    return llava(), Recipe(dropping(ReceivedAttention(layer=-1), Stage.PROJECTED), keep=5)


@pytest.mark.parametrize("case", [_no_cls, _no_such_block, _no_number, _in_a_block, _not_read])
def test_what_no_block_shows_is_an_error(case: Callable[[], tuple[Any, Recipe]]) -> None:
    model, recipe = case()
    needs = next(iter(recipe.needs))
    with pytest.raises(MissingEvidenceError, match=f"needs {needs}"):
        tokenzoo.build(recipe).attach(model)
    assert not hasattr(model, "_tokenzoo_attached")


@pytest.mark.parametrize("make", [qwen2_vl, qwen2_5_vl])
@pytest.mark.parametrize("first", [False, True], ids=["alone", "after tome"])
@pytest.mark.parametrize("stage", [Stage.FEATURES, Stage.PROJECTED])
def test_a_packed_tower_shows_other_blocks_image_by_image(
    make: Any, first: bool, stage: Stage
) -> None:
    model = make().model.visual
    grids = [(1, 8, 12), (2, 6, 10), (1, 8, 12)]
    given = pixels_of(model, grids)
    maps: dict[tuple[int, int], Tensor] = {}

    def note(block: int, number: int, image: Any, own: Any) -> Any:
        n, p = image.x.shape[:2]
        maps[block, number] = own.map.mean(0).view(n, p, n, p).sum(3).mean((0, 1))
        return image

    with torch.inference_mode():
        plain.run(model, given["hidden_states"], grids, note)
    scorer = Seen("received_attention", 1)
    steps = [dropping(scorer, stage)]
    if first:
        tome = tokenzoo.build("tome").recipe.steps[0]
        steps.insert(0, Step(Stage.BLOCK, Once(2, keep=2.0), tome.matcher, tome.merger))
    zoo = tokenzoo.build(Recipe(*steps, keep=0.25))
    with zoo.attach(model, trace=True) as attached, torch.inference_mode():
        scorer.shown.clear()
        model(**given)
        lots = [one.features for one in attached.passes]
    assert lots == [6, 4]  # a quarter of 24 and of 15
    keeps: list[Tensor] = [torch.arange(24).expand(2, -1), torch.arange(15).expand(2, -1)]
    if first:  # which tokens are left of the first step, without the second
        step = Step(Stage.BLOCK, Once(2), *(steps[0].matcher, steps[0].merger))
        alone = tokenzoo.build(Recipe(step, keep=0.5))
        with alone.attach(model, trace=True) as attached, torch.inference_mode():
            model(**given)
            keeps = [one.record.keep for one in attached.passes if one.record is not None]
    # The images of one grid are a lot: 0 and 3, and the two slices of the video.
    for found, units, keep in zip(scorer.shown, ((0, 3), (1, 2)), keeps, strict=True):
        expected = torch.stack([maps[1, unit] for unit in units]).gather(1, keep)
        assert gap(found, expected) <= 1e-5


@pytest.mark.parametrize("make", [qwen2_vl, qwen2_5_vl])
def test_vscan_runs_on_qwen_as_its_authors_run_it(make: Any) -> None:
    model = make()
    options = {"attention_source": "received", "window": 4, "fill": "cap", "shallow": 1, "deep": 3}
    zoo = tokenzoo.build("vscan", keep=0.5, **options, layer=2, positions="keep")
    given = batch_of(model)
    with zoo.attach(model) as attached, torch.inference_mode():
        out = model(**given)
        planned = [attached.plan(one.tokens).visual for one in attached.passes]
        assert [one.features for one in attached.passes] == planned
        assert len(attached.prompts) > 0
    assert out.logits.isfinite().all()
