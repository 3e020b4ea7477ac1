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
from tokenzoo import Recipe, Step
from tokenzoo.errors import MissingEvidenceError
from tokenzoo.evidence import Evidence
from tokenzoo.hooks.attach import find_adapter
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


def shown_by(recipe: Recipe, scorer: Seen, model: Any, call: Callable[[], Any]) -> Any:
    """What the scorer is shown in a pass, bucket by bucket, and the reports about it."""
    with tokenzoo.build(recipe).attach(model, trace=True) as attached, torch.inference_mode():
        scorer.shown.clear()  # of the proof
        call()
        return scorer.shown, attached.passes


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


@pytest.mark.parametrize("layer", [1, -2, 0, -1])
def test_a_step_at_the_features_sees_another_block(layer: int) -> None:
    model = VIT.build()
    x = images(model)
    expected = attention(model, layer, x)[:, :, 0, 1:]  # CLS to the patches
    scorer = Seen("cls_attention", layer)
    with tokenzoo.build(Recipe(dropping(scorer), keep=20)).attach(model) as attached:
        # What is before the block that is looked at is left alone.
        assert attached._passes.sites() == range(layer % 8, 8)
    (found,), (report,) = shown_by(attached.recipe, scorer, model, lambda: model(x))
    assert report.features == 20
    assert gap(found, expected) <= 1e-5


def test_it_travels_through_the_reductions_in_between() -> None:
    """Each token that is left has the score of the token that it stands for."""
    model = VIT.build()
    x = images(model)
    whole = attention(model, 1, x)[:, :, 0, 1:].mean(1)  # [b, n]
    scorer = Seen("cls_attention", 1)
    first = tokenzoo.build("tome", keep=60).recipe.steps[0]
    step = Step(Stage.BLOCK, Once(2, keep=3.0), first.matcher, first.merger)
    both = Recipe(step, dropping(scorer, keep=1.0), keep=40)
    (found,), (report,) = shown_by(both, scorer, model, lambda: model(x))
    assert (report.counts[-1], found.shape[2], report.features) == (120, 120, 40)
    # As they are left by block 2, whose plan is the record of a run without the second step.
    alone = Recipe(Step(Stage.BLOCK, Once(2), first.matcher, first.merger), keep=120)
    _, (report,) = shown_by(alone, scorer, model, lambda: model(x))
    assert gap(found.mean(1), whole.gather(1, report.record.keep[:, 1:] - 1)) <= 1e-5


def test_values_and_depth_are_shown_in_blocks() -> None:
    model = SIGLIP.build()
    seen: list[tuple[float, tuple[int, ...]]] = []

    class Reads(Scorer):
        needs = frozenset({"values", "depth"})

        def score(self, evidence: Evidence) -> Tensor:
            seen.append((evidence.depth, tuple(evidence.values.shape)))
            return evidence.values.square().sum((1, 3))

    schedule = tokenzoo.build("tome").recipe.steps[0].schedule
    step = Step(Stage.BLOCK, schedule, SelectAssign(TopK(Reads()), Drop()), Identity())
    with tokenzoo.build(Recipe(step, keep=100)).attach(model) as attached, torch.inference_mode():
        model(images(model))
        entering = (196, *attached.counts[:-1])
    assert seen == [(i / 8, (2, 2, n, 24)) for i, n in enumerate(entering)]


def test_a_tower_of_transformers_counts_all_its_blocks() -> None:
    model = tower("clip", num_hidden_layers=4)
    given = pixels(model)
    scorer = Seen("cls_attention", -2)
    with torch.inference_mode():
        eager = tower("clip", num_hidden_layers=4, attn_implementation="eager")
        maps = eager(**given, output_attentions=True).attentions
    (found,), _ = shown_by(Recipe(dropping(scorer), keep=7), scorer, model, lambda: model(**given))
    assert gap(found, maps[2][:, :, 0, 1:]) <= 1e-5


@pytest.mark.parametrize("name", [-2, 1])
def test_a_llava_selects_after_its_projector_by_another_block(name: int) -> None:
    model, scorer = llava(), Seen("cls_attention", name)
    given = inputs(model, "<image> what is it", [photos()[:1]])
    projected = Recipe(dropping(scorer, Stage.PROJECTED), keep=5)
    (found,), (report,) = shown_by(projected, scorer, model, lambda: model(**given))
    assert report.features == 5
    adapter: Any = find_adapter(model)
    bare = adapter.tower.model
    features = Recipe(dropping(scorer), keep=5)
    (wanted,), _ = shown_by(features, scorer, bare, lambda: bare(given["pixel_values"]))
    assert gap(found, wanted) <= 1e-5


IN_A_BLOCK = Step(
    Stage.BLOCK, Once(3), SelectAssign(TopK(CLSAttention(layer=1)), Drop()), Identity()
)


@pytest.mark.parametrize(
    ("make", "step"),
    [
        (SIGLIP.build, dropping(CLSAttention(layer=-2))),  # it has no CLS token
        (VIT.build, dropping(CLSAttention(layer=8))),  # it has 8 blocks
        (VIT.build, dropping(CLSAttention(layer="clip"))),
        (VIT.build, IN_A_BLOCK),
        # A LLaVA reads the last but one of its tower's layers.
        (llava, dropping(ReceivedAttention(layer=-1), Stage.PROJECTED)),
    ],
)
def test_what_no_block_shows_is_an_error(make: Callable[[], Any], step: Step) -> None:
    model, (needs,) = make(), step.needs
    with pytest.raises(MissingEvidenceError, match=f"needs {needs}"):
        tokenzoo.build(Recipe(step, keep=5)).attach(model)
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
    shown, reports = shown_by(Recipe(*steps, keep=0.25), scorer, model, lambda: model(**given))
    assert [one.features for one in reports] == [6, 4]  # a quarter of 24 and of 15
    keeps: list[Tensor] = [torch.arange(24).expand(2, -1), torch.arange(15).expand(2, -1)]
    if first:  # which tokens are left of the first step, without the second
        step = Step(Stage.BLOCK, Once(2), steps[0].matcher, steps[0].merger)
        alone = Recipe(step, keep=0.5)
        _, reports = shown_by(alone, Seen("x", 1), model, lambda: model(**given))
        keeps = [one.record.keep for one in reports]
    # The images of one grid are a lot: 0 and 3, and the two slices of the video.
    for found, units, keep in zip(shown, ((0, 3), (1, 2)), keeps, strict=True):
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
