"""The vision towers of Qwen2-VL and Qwen2.5-VL: groups, windows, angles and boundaries stay in step."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_utils import AttentionInterface

import tokenzoo
from tests.adapters.hf.vlm import plain_qwen as plain
from tests.adapters.hf.vlm import qwen
from tests.adapters.hf.vlm.calls import remains
from tests.adapters.hf.vlm.plain_qwen import Image, Shown
from tests.adapters.models import gap
from tests.pairs import paired
from tokenzoo import Evidence, Recipe, Stage, Step
from tokenzoo.errors import AttachError, MissingEvidenceError
from tokenzoo.hooks.attach import find_adapter
from tokenzoo.hooks.handle import Attached
from tokenzoo.hooks.reduction import Event
from tokenzoo.matchers import Drop, Nearest, SelectAssign, TopK
from tokenzoo.mergers import Identity, WeightedMean
from tokenzoo.parts import Schedule, Scorer
from tokenzoo.schedules import Explicit, Mean, Once
from tokenzoo.scorers import Random, ReceivedAttention, Similarity

KINDS = {"qwen2_vl": qwen.qwen2_vl, "qwen2_5_vl": qwen.qwen2_5_vl, "qwen3_vl": qwen.qwen3_vl}
BOTH = pytest.mark.parametrize("kind", KINDS)
BASES = pytest.mark.parametrize("base", ["sdpa", "eager"])
RECIPES = ("evoprune", "tome", "random", "uniform", "pool")
EACH = pytest.mark.parametrize("name", RECIPES)

Grids = tuple[tuple[int, int, int], ...]

MIXED: Grids = ((1, 6, 10), (1, 4, 14), (2, 6, 6), (1, 6, 10), (1, 14, 10))
"""Images of different sizes, two of them with one grid, and a video of two slices."""


def tower(kind: str, base: str = "sdpa") -> Any:
    """A fresh tower; of 5 blocks, in Qwen2.5-VL with windows in some of them."""
    made = copy.deepcopy(_tower(kind))
    made.set_attn_implementation(base)
    return made


@cache
def _tower(kind: str) -> Any:
    return KINDS[kind]().model.visual


def pixels(model: Any, grids: Grids) -> Tensor:
    return qwen.pixels(model, grids)["hidden_states"]


def run(model: Any, x: Tensor, grids: Grids) -> Tensor:
    """What the merger has made: `[t, channels]`."""
    with torch.no_grad():
        return model(x, grid_thw=torch.tensor(grids)).pooler_output


@cache
def bare(kind: str, base: str = "sdpa", grids: Grids = MIXED) -> Tensor:
    model = tower(kind, base)
    return run(model, pixels(model, grids), grids)


def sizes(grids: Grids = MIXED) -> list[int]:
    """Groups of each image, and of each slice of a video."""
    return [h * w // 4 for t, h, w in grids for _ in range(t)]


def alone(model: Any, x: Tensor, grids: Grids) -> list[tuple[Tensor, Grids]]:
    """The images and slices of a pass, each for itself."""
    parts = x.split([4 * n for n in sizes(grids)])
    single = [((1, h, w),) for t, h, w in grids for _ in range(t)]
    return list(zip(parts, single, strict=True))


def kept(attached: Attached) -> list[Tensor]:
    """Of each image of the last pass, which of its groups are left."""
    found: dict[int, Tensor] = {}
    for one in attached.passes:
        assert one.record is not None
        found.update(zip(one.images, one.record.keep, strict=True))
    return [found[i] for i in sorted(found)]


def dropping(schedule: Schedule, keep: float | None, stage: Stage = Stage.BLOCK) -> Recipe:
    """Groups at random."""
    return Recipe(
        Step(stage, schedule, SelectAssign(TopK(Random()), Drop()), Identity()), keep=keep
    )


@BOTH
@BASES
def test_the_plain_tower_is_the_tower(kind: str, base: str) -> None:
    model = tower(kind, base)
    with torch.no_grad():
        out = plain.merged(model, plain.run(model, pixels(model, MIXED), MIXED))
    assert gap(out, bare(kind, base)) <= 1e-5


@BOTH
@pytest.mark.parametrize("at", ["features", "last block", "projected"])
def test_dropped_at_the_end_the_rest_are_the_rows_of_the_bare_tower(kind: str, at: str) -> None:
    stages = {"features": Stage.FEATURES, "projected": Stage.PROJECTED, "last block": Stage.BLOCK}
    recipe = dropping(Once(-1), 0.4, stages[at])
    model = tower(kind)
    x = pixels(model, MIXED)
    with tokenzoo.build(recipe).attach(model, trace=True) as attached:
        out = run(model, x, MIXED)
        rows = kept(attached)
    starts = torch.tensor([0, *sizes(MIXED)]).cumsum(0)
    assert [len(own) for own in rows] == [attached.plan(n).visual for n in sizes(MIXED)]
    expected = bare(kind)[
        torch.cat([own + begin for own, begin in zip(rows, starts, strict=False)])
    ]
    # (After the merger rows are only chosen; before it, fewer rows may be multiplied in another order.)
    assert gap(out, expected) <= (0 if at == "projected" else 1e-6)


@BOTH
@EACH
def test_each_image_of_a_packed_batch_gets_what_it_gets_alone(kind: str, name: str) -> None:
    model = tower(kind)
    x = pixels(model, MIXED)
    with tokenzoo.build(name, keep=0.3).attach(model) as attached:
        out = run(model, x, MIXED).split([attached.plan(n).visual for n in sizes(MIXED)])
        whole = bare(kind).split(sizes(MIXED))
        for i, (own, grid) in enumerate(alone(model, x, MIXED)):
            single = run(model, own, grid)
            assert gap(out[i], single) <= 1e-5
            assert len(single) < len(whole[i])


ODD: Grids = (
    *((1, 2, 2), (1, 2, 4), (1, 2, 26), (1, 18, 2), (1, 4, 6), (1, 6, 6), (1, 6, 8)),
    *((1, 10, 14), (1, 14, 22), (1, 12, 12), (1, 22, 10), (2, 8, 6), (1, 26, 14)),
)


@BOTH
@EACH
@pytest.mark.parametrize("keep", [0.3, 24])
def test_counts_are_the_plan_for_odd_sizes(kind: str, name: str, keep: float) -> None:
    """Windows are of 3 x 3 groups: most of these have ragged ones."""
    model = tower(kind)
    x = pixels(model, ODD)
    with tokenzoo.build(name, keep=keep).attach(model) as attached:
        plans = {n: attached.plan(n) for n in sizes(ODD)}
        out = run(model, x, ODD)
        assert len(out) == sum(plans[n].visual for n in sizes(ODD))
        for one in attached.passes:
            assert one.counts == plans[one.tokens].blocks
            assert one.features == plans[one.tokens].visual
            assert keep != 24 or one.features == min(24, one.tokens)
        assert sorted(i for one in attached.passes for i in one.images) == list(range(14))
        run(model, *alone(model, x, ODD)[0])  # of one group, and no others to reduce
        assert attached.counts == (1,) * 5
    if keep == 24:  # what is smaller stays whole
        parts = out.split([plans[n].visual for n in sizes(ODD)])
        for own, whole in zip(parts, bare(kind, grids=ODD).split(sizes(ODD)), strict=True):
            assert len(whole) > 24 or gap(own, whole) <= 1e-5


@dataclass(frozen=True)
class Replay:
    """What a pass reduced, carried out on the plain tower.

    Attributes:
        events: as `on_reduce` was told them.
        grids: of the pass.
    """

    events: Sequence[Event]
    grids: Grids

    def __call__(self, block: int, i: int, image: Image, shown: Shown) -> Image:
        del shown
        units = [(h, w) for t, h, w in self.grids for _ in range(t)]
        lot = [j for j, own in enumerate(units) if own == units[i]]
        mine = [
            event.plan
            for event in self.events
            if event.block == block and event.plan.dst.shape == (len(lot), len(image.x))
        ]
        if not mine:
            return image
        (plan,) = mine
        row = lot.index(i)
        return plain.joined(image, plan.keep[row], plan.dst[row])


TWICE = (0, 4, 0, 3, 0)  # of 14, 9, 15 and 35 groups


@BOTH
@BASES
@pytest.mark.parametrize(
    "recipe",
    [
        dropping(Explicit(TWICE), None),
        tokenzoo.build("tome", r=list(TWICE)).recipe,
        tokenzoo.build("tome", keep=0.3).recipe,
        tokenzoo.build("evoprune", keep=0.3).recipe,
        tokenzoo.build("pool", keep=0.3).recipe,
    ],
    ids=["random", "tome r", "tome", "evoprune", "pool"],
)
def test_a_reduced_pass_is_the_plain_tower_with_the_same_plans(
    kind: str, base: str, recipe: Recipe
) -> None:
    """And its gradients are."""
    model = tower(kind, base)
    x = pixels(model, MIXED)
    events: list[Event] = []
    with tokenzoo.build(recipe).attach(model, on_reduce=events.append, trace=True) as attached:
        out = model(x, grid_thw=torch.tensor(MIXED)).pooler_output
        places, passes = kept(attached), attached.passes
    found = plain.run(
        model, x, MIXED, Replay(events, MIXED), proportional=recipe.proportional_attention
    )
    expected = plain.merged(model, found)
    assert gap(out, expected) <= 1e-4
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    # (What inner blocks hand the language model is in test_streams.py.)
    parameters = [own for name, own in model.named_parameters() if "deepstack" not in name]
    grads = torch.autograd.grad((out * weights).sum(), parameters)
    for grad, own in zip(
        grads, torch.autograd.grad((expected * weights).sum(), parameters), strict=True
    ):
        assert gap(grad, own) <= 1e-3
    assert gap(out, bare(kind, base)[: len(out)]) > 0.1
    masses: dict[int, Tensor] = {}
    for one in passes:
        assert one.mass is not None
        masses.update(zip(one.images, one.mass, strict=True))
    for i, image in enumerate(found):
        assert torch.equal(places[i], image.place)
        assert torch.equal(masses[i], image.mass)


@dataclass(frozen=True)
class Probe(Scorer):
    """Look at all evidence; score at random."""

    seen: list[Any]
    needs = frozenset({"received_attention", "attention", "keys", "queries"})

    def score(self, evidence: Evidence) -> Tensor:
        self.seen.append(evidence)
        return Random(1).score(evidence)


def tokenwise(map_: Tensor, p: int) -> Tensor:
    """Of a map `[h, r, r]` the one of the tokens `[h, n, n]`: mean over p queries, sum over p keys."""
    h, r, _ = map_.shape
    return map_.reshape(h, r // p, p, r // p, p).mean(2).sum(-1)


@BOTH
@BASES
@pytest.mark.parametrize("proportional", [False, True])
def test_the_evidence_is_that_of_the_dense_attention(
    kind: str, base: str, proportional: bool
) -> None:
    model = tower(kind, base)
    grids: Grids = ((1, 14, 10), (1, 6, 10), (1, 14, 10))
    lots = ((0, 2), (1,))
    x = pixels(model, grids)
    seen: list[Evidence] = []
    events: list[Event] = []
    join = SelectAssign(TopK(Probe(seen)), Nearest(Similarity("x")))
    step = Step(Stage.BLOCK, Mean(), join, WeightedMean())
    recipe = Recipe(step, keep=0.1, proportional_attention=proportional)
    with tokenzoo.build(recipe).attach(model, on_reduce=events.append):
        run(model, x, grids)
    replay = Replay(events, grids)
    shown: dict[tuple[int, int], tuple[Image, Shown]] = {}
    windows: set[int] = set()

    def between(block: int, i: int, image: Image, own: Shown) -> Image:
        shown[block, i] = image, own
        if i == 0:
            windows.add(len(plain.window_of(model, 0, image).unique()))
        return replay(block, i, image, own)

    with torch.no_grad():
        plain.run(model, x, grids, between, proportional=proportional)
    assert len(seen) == 10  # 5 blocks, 2 lots
    assert kind != "qwen2_5_vl" or min(windows) < max(windows)  # some lost all their groups
    for site, evidence in enumerate(seen):
        block, lot = site // 2, lots[site % 2]
        assert ("grid" in evidence.provides) == (block == 0)
        assert block > 0 or evidence.grid == ((7, 5), (3, 5))[site % 2]
        assert "cls_attention" not in evidence.provides
        n = evidence.x.shape[1]
        index = torch.tensor([[0, n - 1, n // 2]]).expand(len(lot), -1)
        weight = torch.rand(len(lot), n, generator=torch.Generator().manual_seed(site)) + 0.5
        share = weight / weight.sum(1, keepdim=True)
        for row, i in enumerate(lot):
            image, own = shown[block, i]
            dense = tokenwise(own.map, image.x.shape[1])  # [h, n, n]
            for found, expected in (
                (evidence.x, image.x.flatten(1)),
                (evidence.mass, image.mass),
                (evidence.keys, own.key.reshape(len(own.key), n, -1)),
                (evidence.queries, own.query.reshape(len(own.key), n, -1)),
                (evidence.received_attention, dense.mean((0, 1))),
                (evidence.rows(index), dense[:, index[row]]),
                (evidence.attention.received(mass=weight), dense.mean(0).mT @ share[row]),
            ):
                assert gap(found[row], expected) <= 1e-4


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Tensor]]:
    """A function for sequences of any lengths in the place of flash attention; widths and boundaries."""
    calls: list[tuple[int, Tensor]] = []

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        assert attention_mask is None
        assert module.config._attn_implementation == "flash_attention_2"
        bounds = options["cu_seq_lens_q"]
        assert bounds is options["cu_seq_lens_k"]
        assert bounds.dtype == torch.int32
        assert bounds[-1] == query.shape[2]
        assert (bounds.diff() <= options["max_length_q"]).all()
        calls.append((query.shape[-1], bounds))
        parts = [
            F.scaled_dot_product_attention(
                *(x[:, :, a:b] for x in (query, key, value)), scale=options["scaling"]
            )
            for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
            if a < b
        ]
        return torch.cat(parts, 2).transpose(1, 2).contiguous(), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", attend)
    return calls


@BOTH
@pytest.mark.parametrize("name", ["evoprune", "tome", "random"])
def test_by_flash_attention_windows_may_be_empty(kind: str, name: str, flash: list[Any]) -> None:
    model = tower(kind)
    x = pixels(model, MIXED)
    keep = 0.3 if name == "evoprune" else 0.1
    with tokenzoo.build(name, keep=keep).attach(model):
        expected = run(model, x, MIXED)
    model.config._attn_implementation_internal = "flash_attention_2"
    assert gap(run(model, x, MIXED), bare(kind)) <= 1e-5
    before = [len(bounds) for _, bounds in flash]
    with tokenzoo.build(name, keep=keep).attach(model):
        flash.clear()
        assert gap(run(model, x, MIXED), expected) <= 1e-5
        assert [len(bounds) for _, bounds in flash] == before  # as many windows as there were
    empty = any((bounds.diff() == 0).any() for _, bounds in flash)
    assert name != "random" or empty == (kind == "qwen2_5_vl")
    width = 48 // model.blocks[0].attn.num_heads  # and wider with the logarithm of the mass
    assert {found for found, _ in flash} == ({width} if name == "random" else {width, 16})
    assert gap(run(model, x, MIXED), bare(kind)) <= 1e-5


@paired("kind", KINDS, "name", ("evoprune", "tome", "random", "divprune"))
def test_other_forms_of_a_call(kind: str, name: str) -> None:
    model = tower(kind)
    x, grids = pixels(model, MIXED), torch.tensor(MIXED)
    attached = tokenzoo.build(name, keep=0.4).attach(model)
    wanted = run(model, x, MIXED)
    with torch.no_grad():
        assert torch.equal(model(x, grids).pooler_output, wanted)
        assert torch.equal(model(hidden_states=x, grid_thw=grids).pooler_output, wanted)
        assert torch.equal(model(x, grid_thw=grids, return_dict=False)[1], wanted)
        out = model(x, grid_thw=grids, output_hidden_states=True)
    assert torch.equal(out.pooler_output, wanted)
    rows = [sum(one.counts[i] * len(one.images) for one in attached.passes) * 4 for i in range(5)]
    assert [len(hidden) for hidden in out.hidden_states] == [len(x), *rows]
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)


@BOTH
def test_what_is_told_of_a_pass_with_images_of_several_grids(kind: str) -> None:
    model = tower(kind)
    x = pixels(model, MIXED)
    events: list[Event] = []
    attached = tokenzoo.build("tome", r=list(TWICE)).attach(
        model, trace=True, on_reduce=events.append, debug=True
    )
    with pytest.raises(AttachError, match="has not run"):
        attached.passes  # noqa: B018
    assert "last pass" not in attached.summary(tokens=15)
    out = run(model, x, MIXED)
    lots = {15: (0, 4), 14: (1,), 9: (2, 3), 35: (5,)}  # by grid, in the order of their first image
    assert {one.tokens: one.images for one in attached.passes} == lots
    lines = attached.summary(tokens=15).splitlines()
    assert sum(line.startswith("last pass") for line in lines) == 4
    for name in ("counts", "features", "mass", "record"):
        with pytest.raises(AttachError, match=r"4 grids .*attached\.passes"):
            getattr(attached, name)
    assert len(out) == sum(one.features * len(one.images) for one in attached.passes)
    assert [(event.stage, event.block, len(event.plan.keep)) for event in events] == [
        ("block", block, len(images)) for block in (1, 3) for images in lots.values()
    ]
    channels = attached.adapter.width * 4
    for event in events:
        (b, m), plan, mass = event.plan.keep.shape, event.plan, event.before.mass
        assert event.before.x.shape == (b, plan.tokens, channels)
        assert event.after.x.shape == (b, m, channels)
        assert bool((plan.keep.diff(dim=1) > 0).all())  # what is left stays in its order
        assert torch.equal(event.after.mass, plan.sum(mass))
        means = plan.sum(event.before.x * mass[..., None]) / event.after.mass[..., None]
        assert gap(event.after.x, means) <= 1e-5
    for one in attached.passes:
        one.record.check()
        assert torch.equal(one.record.sum(torch.ones(len(one.images), one.tokens)), one.mass)
    run(model, *alone(model, x, MIXED)[5])  # the next pass has one grid
    assert attached.counts == (35, 31, 31, 28, 28)


def test_debug_names_what_is_no_number() -> None:
    model = tower("qwen2_5_vl")
    x = pixels(model, MIXED)
    x[70] = torch.nan
    with (
        tokenzoo.build("random", keep=0.5).attach(model, debug=True),
        pytest.raises(AttachError, match=r"reach the reduction in blocks\.1"),
    ):
        run(model, x, MIXED)
    assert remains(model) == []


@BOTH
def test_divprune_is_the_recipe_on_the_merged_rows(kind: str) -> None:
    model = tower(kind)
    x = pixels(model, MIXED)
    with tokenzoo.build("divprune", keep=0.4).attach(model) as attached:
        out = run(model, x, MIXED)
        assert [one.counts for one in attached.passes] == [(n,) * 5 for n in (15, 14, 9, 35)]
    recipe = tokenzoo.build("divprune", keep=0.4)
    rows = [recipe.reduce(own[None]).x[0] for own in bare(kind).split(sizes(MIXED))]
    assert torch.equal(out, torch.cat(rows))


@BOTH
@BASES
def test_steps_at_all_stages(kind: str, base: str) -> None:
    """Most attended: in a block, after the last one, and after the merger, by the last one's maps."""
    by_attention = SelectAssign(TopK(ReceivedAttention()), Drop())
    steps = [
        Step(Stage.BLOCK, Once(1, keep=3), by_attention, Identity()),
        Step(Stage.FEATURES, Once(keep=2), by_attention, Identity()),
        Step(Stage.PROJECTED, Once(), by_attention, Identity()),
    ]
    model = tower(kind, base)
    grids: Grids = ((1, 14, 10), (1, 6, 10), (1, 14, 10))
    x = pixels(model, grids)
    with tokenzoo.build(Recipe(*steps, keep=0.25)).attach(model, trace=True) as attached:
        out = run(model, x, grids)
        rows = kept(attached)
        assert [len(own) for own in rows] == [9, 4, 9]
    assert remains(model) == []
    wanted = {35: (27, 18, 9), 15: (12, 8, 4)}
    scores: dict[int, Tensor] = {}

    def between(block: int, i: int, image: Image, shown: Shown) -> Image:
        score = tokenwise(shown.map, image.x.shape[1]).mean((0, 1))
        if block == 4:
            scores[i] = score
        if block != 1:
            return image
        return largest(image, score, wanted[len(image.x)][0])[0]

    with torch.no_grad():
        found = plain.run(model, x, grids, between)
        for i, image in enumerate(found):
            n = {27: 35, 12: 15}[len(image.x)]
            image, score = largest(image, scores[i], wanted[n][1])
            found[i] = largest(image, score, wanted[n][2])[0]
            assert torch.equal(rows[i], found[i].place)
        assert gap(out, plain.merged(model, found)) <= 1e-4


def largest(image: Image, score: Tensor, keep: int) -> tuple[Image, Tensor]:
    """The groups with the highest scores, in their order, and those scores."""
    at = score.topk(keep).indices.sort().values
    return replace(image, x=image.x[at], place=image.place[at], mass=image.mass[at]), score[at]


@BOTH
def test_what_a_tower_does_not_have(kind: str) -> None:
    model = tower(kind)
    for name in ("fastv", "downsample"):
        with pytest.raises(AttachError, match="can be reduced at block, features, projected"):
            tokenzoo.build(name).attach(model)
    with pytest.raises(MissingEvidenceError, match=r"cls_attention.*received_attention"):
        tokenzoo.build("visionzip").attach(model)
    with pytest.raises(AttachError, match="restore=True"):
        tokenzoo.build("tome").attach(model, restore=True)
    assert remains(model) == []


@BOTH
@pytest.mark.parametrize("what", ["mlp", "norm2", "order", "boundaries", "angles"])
def test_a_strange_block_is_found_and_named(kind: str, what: str) -> None:
    model = tower(kind)
    block = model.blocks[2]
    if what == "mlp":  # it looks at all its rows
        block.mlp.register_forward_pre_hook(lambda module, args: (args[0] - args[0].mean(0),))
    elif what == "norm2":  # it turns its rows around
        block.norm2.register_forward_hook(lambda module, args, out: out.flip(0))
    else:

        class Mine(type(block)):
            def forward(self, hidden_states: Tensor, cu_seqlens: Tensor, **options: Any) -> Tensor:
                n = len(hidden_states)
                if what == "order":  # x + MLP, then x + attention
                    x = hidden_states + self.mlp(self.norm2(hidden_states))
                    return x + self.attn(self.norm1(x), cu_seqlens=cu_seqlens, **options)
                if what == "boundaries":  # images see each other
                    cu_seqlens = torch.tensor([0, n], dtype=torch.int32)
                else:  # angles of its own, by where a patch is in the sequence
                    d = options["position_embeddings"][0].shape[1]
                    angle = torch.arange(n)[:, None] / (1 + torch.arange(d))
                    options["position_embeddings"] = (angle.cos(), angle.sin())
                return super().forward(hidden_states, cu_seqlens, **options)

        block.__class__ = Mine
    with pytest.raises(AttachError, match=r"blocks\.2"):
        tokenzoo.build("evoprune", keep=0.5).attach(model)
    assert remains(model) == []


def test_a_hook_that_returns_a_new_tensor_between_blocks_is_refused() -> None:
    model = tower("qwen2_5_vl")
    x = pixels(model, MIXED)
    with tokenzoo.build("random", keep=0.5).attach(model):
        handle = model.blocks[2].register_forward_hook(lambda module, args, out: out * 1)
        with pytest.raises(AttachError, match="do not carry the state of their pass"):
            run(model, x, MIXED)
        handle.remove()
        run(model, x, MIXED)
    model.blocks[2].register_forward_hook(lambda module, args, out: out * 1)
    with pytest.raises(AttachError, match="returns a new tensor"):
        tokenzoo.build("random", keep=0.5).attach(model)


def test_a_block_by_itself_is_refused() -> None:
    model = tower("qwen2_5_vl")
    tokenzoo.build("random", keep=0.5).attach(model)
    angle = torch.zeros(16, 12)
    with pytest.raises(AttachError, match="call the tower, with its grid_thw"):
        model.blocks[0](
            torch.zeros(16, 48),
            cu_seqlens=torch.tensor([0, 16], dtype=torch.int32),
            position_embeddings=(angle, angle),
        )


def test_another_implementation_while_attached_is_an_error_not_silence() -> None:
    model = tower("qwen2_vl")
    x = pixels(model, MIXED)
    attached = tokenzoo.build("evoprune", keep=0.3).attach(model)
    model.set_attn_implementation("eager")
    with pytest.raises(AttachError, match="call it before attach"):
        run(model, x, MIXED)
    attached.detach()
    tokenzoo.build("evoprune", keep=0.3).attach(model)
    run(model, x, MIXED)


@BOTH
def test_groups_of_a_window_see_each_other(kind: str) -> None:
    """What the cost of a block is planned by; 0: all groups of an image."""
    model = tower(kind)
    full = getattr(model, "fullatt_block_indexes", range(5))
    assert find_adapter(model).reach == tuple(0 if i in full else 3 * 3 for i in range(5))


def test_the_order_of_the_windows_is_the_towers() -> None:
    from transformers.vision_utils import get_vision_window_index

    model = tower("qwen2_5_vl")
    adapter: Any = find_adapter(model)
    for rows, columns in product(range(1, 9), (1, 2, 3, 5, 7, 9)):
        grid = torch.tensor([[1, 2 * rows, 2 * columns]])
        index, _ = get_vision_window_index(grid, 2, model.window_size, model.patch_size)
        assert torch.equal(index[adapter.order((rows, columns))], torch.arange(rows * columns))
