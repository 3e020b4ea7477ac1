"""Removed tokens that still attend, and come back after the blocks: against loops written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.adapters.hf.vlm import plain_qwen
from tests.adapters.hf.vlm.test_packed_tower import (
    BOTH,
    MIXED,
    alone,
    bare,
    pixels,
    sizes,
    tower,
)
from tests.adapters.hf.vlm.test_packed_tower import run as run_packed
from tests.adapters.models import DINO_REG, EVA02, GAP, SIGLIP, VIT, Case, gap, images, traces
from tests.compiling import clean_compiler as clean_compiler
from tests.hooks.running import gradients, run, same, tiny
from tokenzoo import Recipe, Scorer, Stage, Step
from tokenzoo.errors import AttachError, BadArgumentError, MissingEvidenceError
from tokenzoo.matchers import Above, Drop, Fuse, Nearest, SelectAssign, TopK
from tokenzoo.mergers import CopyBack, Identity, NeighbourUpdate, WeightedMean
from tokenzoo.schedules import Explicit, Once, Skip
from tokenzoo.scorers import (
    FeatureChange,
    FeatureNorm,
    NegativeSquaredDistance,
    ReceivedAttention,
    Similarity,
)

DROP = SelectAssign(TopK(FeatureNorm()), Drop())


def entering(model: Any, x: Tensor) -> Tensor:
    """What enters the first block of the bare model: `[b, prefix + n, c]`."""
    found: list[Tensor] = []
    handle = model.blocks[0].register_forward_pre_hook(lambda _, args: found.append(args[0]))
    run(model, x)
    handle.remove()
    return found[0]


def attention(block: Any, x: Tensor) -> Tensor:
    return x + block.ls1(block.attn(block.norm1(x)))


def mlp(block: Any, x: Tensor) -> Tensor:
    return x + block.ls2(block.mlp(block.norm2(x)))


def moved(x: Tensor, now: Tensor, kept: Tensor, k: int, prefix: int = 0) -> Tensor:
    """Rows `x [n, c]` as their nearest kept ones have moved, one row at a time; no prefix moves one."""
    rows, left = list[Tensor](), dict(zip(kept.tolist(), now, strict=True))
    for i in range(len(x)):
        others = [j for j in left if j >= prefix]
        near = sorted(others, key=lambda j: float((x[i] - x[j]).norm()))[:k]
        moves = torch.stack([left[j] - x[j] for j in near])
        rows.append(left[i] if i in left else x[i] + moves.mean(0))
    return torch.stack(rows)


@torch.no_grad()
def ipcv_by_hand(
    model: Any, x: Tensor, prefix: int, keep: int, layer: int, attended: int, k: int
) -> Tensor:
    """All tokens after the last block, of one image `x [1, prefix + n, c]` that enters the first."""
    before = first = left = x
    kept = torch.arange(0)
    for i, block in enumerate(model.blocks):
        if i < layer:
            before, x = x, mlp(block, attention(block, x))
            continue
        if i == layer:
            change = (x - before)[0, prefix:].norm(dim=-1)
            kept = change.argsort(descending=True, stable=True)[:keep].sort().values
            kept = torch.cat([torch.arange(prefix), kept + prefix])
            first, left = x[0], x[:, kept]
        if i < layer + attended:
            whole = moved(first, left[0], kept, k, prefix)[None]
            left = attention(block, whole)[:, kept]
        else:
            left = attention(block, left)
        left = mlp(block, left)
    return moved(first, left[0], kept, k, prefix)[None]


@pytest.mark.parametrize("case", [VIT, SIGLIP, DINO_REG], ids=lambda case: case.family)
@pytest.mark.parametrize("attended", [0, 1, 3, 99])
def test_ipcv_is_the_loop_by_hand(case: Case, attended: int) -> None:
    size = 16 * 5 if case is not DINO_REG else 14 * 5
    model = case.build(depth=6, img_size=size)
    x = images(model)
    first = entering(model, x)
    zoo = tokenzoo.build("ipcv", keep=7, layer=2, attended=attended, neighbours=3)
    with zoo.attach(model) as attached, torch.no_grad():
        found = model.forward_features(x)
        assert attached.counts == (25, 25, *(7,) * 4) == attached.plan().blocks
        assert attached.features == attached.plan().features == 25
    by_hand = [ipcv_by_hand(model, one, case.prefix, 7, 2, attended, 3) for one in first.split(1)]
    assert gap(found, model.norm(torch.cat(by_hand)).detach()) <= 1e-5
    assert traces(model) == []


@dataclass
class Gone:
    """Tokens that one block removed: their rows as they entered it, and the last block they attend in."""

    rows: dict[int, Tensor]
    last: int


@torch.no_grad()
def copied_by_hand(
    model: Any, x: Tensor, removals: tuple[int, ...], attended: int, scorer: Scorer
) -> Tensor:
    """With `CopyBack`, several blocks removing; one image `[1, n, c]` without prefix."""
    left: dict[int, Tensor] = dict(enumerate(x[0]))
    gone: list[Gone] = []
    entered = left
    for i, block in enumerate(model.blocks):
        previous, entered = entered, dict(left)
        there = dict(left)
        for one in gone:
            if i <= one.last:
                there |= one.rows
        places = sorted(there)
        out = attention(block, torch.stack([there[p] for p in places])[None])[0]
        left = {p: row for p, row in zip(places, out, strict=True) if p in left}
        if removals[i]:
            change = {p: entered[p] - previous[p] for p in left}
            scored = left if isinstance(scorer, FeatureNorm) else change
            ranked = sorted(left, key=lambda p: float(scored[p].norm()))
            lost = ranked[: removals[i]]
            gone.append(Gone({p: entered[p] for p in lost}, i + attended - 1))
            left = {p: row for p, row in left.items() if p not in lost}
        rows = mlp(block, torch.stack([left[p] for p in sorted(left)])[None])[0]
        left = dict(zip(sorted(left), rows, strict=True))
    for one in gone:
        left |= one.rows
    return torch.stack([left[p] for p in sorted(left)])[None]


@pytest.mark.parametrize("scorer", [FeatureNorm(), FeatureChange()])
@pytest.mark.parametrize("attended", [1, 2, 3])
def test_several_blocks_remove_tokens_that_attend_for_a_while(
    attended: int, scorer: Scorer
) -> None:
    """What entered the blocks is that of the tokens that are left, whoever else attends."""
    model = SIGLIP.build(depth=6, img_size=64)
    x = images(model)
    removals = (0, 5, 3, 0, 2, 1)
    match = SelectAssign(TopK(scorer), Drop())
    step = Step(
        *(Stage.BLOCK, Explicit(removals), match, Identity()),
        restorer=CopyBack(),
        attended=attended,
    )
    first = entering(model, x)
    with tokenzoo.build(Recipe(step, keep=None)).attach(model) as attached, torch.no_grad():
        found = model.forward_features(x)
        assert attached.counts == (16, 11, 8, 8, 6, 5)
    by_hand = [copied_by_hand(model, one, removals, attended, scorer) for one in first.split(1)]
    assert gap(found, model.norm(torch.cat(by_hand)).detach()) <= 1e-5


def test_merged_tokens_come_back_as_copies_and_masses_are_forgotten() -> None:
    """The mean over all tokens is then the mean by mass, and the pooling has nothing to count."""
    model = GAP.build(depth=4)
    match = SelectAssign(TopK(FeatureNorm()), Nearest(Similarity("x")))
    steps = [
        Step(Stage.BLOCK, Skip(), match, WeightedMean(), restorer=restorer)
        for restorer in (None, CopyBack())
    ]
    x, found = images(model), list[Tensor]()
    for step in steps:
        with tokenzoo.build(Recipe(step, keep=0.2)).attach(model) as attached:
            found.append(run(model, x))
    assert gap(found[1], found[0]) <= 1e-5
    with pytest.raises(AttachError, match="every token stands for itself"):
        _ = attached.mass


@pytest.mark.parametrize("restore", [False, True])
def test_with_all_restored_every_block_returns_all_tokens(restore: bool) -> None:
    model = VIT.build(depth=6, img_size=64)
    x, told = images(model), dict[int, Tensor]()
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, args, out, i=i: told.update({i: out}))
    zoo = tokenzoo.build("ipcv", keep=5, layer=2, attended=2, neighbours=3)
    with zoo.attach(model) as attached:
        plain = run(model, x)
        last = told[5]
        inner = told[4]
        assert attached.counts == (16, 16, 5, 5, 5, 5)
    with zoo.attach(model, restore=restore) as attached:
        assert gap(run(model, x), plain) <= 1e-6
        assert attached.counts == (16, 16, 5, 5, 5, 5)
        assert [told[i].shape[1] for i in range(6)] == [17] * (6 if restore else 2) + [6, 6, 6, 17][
            : 0 if restore else 4
        ]
        assert gap(told[5], last) <= 1e-6
    if restore:  # the rows of those that are left are what the next block reads
        kept = [row for row in told[4][0] if bool((row - inner[0]).norm(dim=-1).min() < 1e-4)]
        assert len(kept) >= 6


def test_what_a_hook_writes_into_restored_rows_of_removed_tokens_counts_no_more() -> None:
    model = tiny(SIGLIP, depth=4)
    x = images(model)
    zoo = tokenzoo.build("ipcv", keep=5, layer=1, attended=1)
    with zoo.attach(model, restore=True, trace=True) as attached:
        plain = run(model, x)
        kept = attached.record.keep
        assert kept.shape == (2, 5)

        def spoil(_: Any, args: Any, out: Tensor) -> None:
            rows = torch.ones(out.shape[:2]).scatter(1, kept, 0)
            out.add_(rows[..., None] * 100)

        handle = model.blocks[2].register_forward_hook(spoil)
        assert gap(run(model, x), plain) <= 1e-6
        handle.remove()


def test_gradients_reach_removed_tokens_and_are_those_without_checkpointing() -> None:
    model = VIT.build(depth=4, img_size=64).train()
    x = images(model)
    tokenzoo.build("ipcv", keep=5, layer=1, attended=2, neighbours=3).attach(model)
    patches: list[Tensor] = []
    model.patch_embed.register_forward_hook(lambda _, args, out: patches.append(out))
    plain = gradients(model, x, -x)
    out = model(x)
    (grad,) = torch.autograd.grad(out.sum(), patches[-1])
    assert bool((grad.norm(dim=-1) > 0).all())
    model.set_grad_checkpointing()
    assert same(gradients(model, x, -x), plain, 1e-6)


def test_it_compiles_as_one_graph(clean_compiler: None) -> None:
    model = tiny(VIT, depth=4)
    x = images(model)
    tokenzoo.build("ipcv", keep=5, layer=1, attended=2, neighbours=3).attach(model)
    eager = run(model, x)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    assert gap(run(compiled, x), eager) <= 1e-6


def test_the_budget_counts_the_attention_of_removed_tokens() -> None:
    def plan(attended: int) -> Any:
        zoo = tokenzoo.build("ipcv", keep=50, layer=2, attended=attended)
        return zoo.plan(100, 6, prefix=1, width=64)

    assert plan(0).attended == (100, 100, 50, 50, 50, 50)
    assert plan(1).attended == ()
    assert plan(3).attended == (100, 100, 100, 100, 100, 50)
    assert {plan(a).blocks for a in (0, 1, 3)} == {(100, 100, 50, 50, 50, 50)}
    assert {(plan(a).visual, plan(a).least) for a in (0, 1, 3)} == {(100, 50)}
    assert "attention   100 x 5, 50\n" in str(plan(3))
    n, m = 101, 51
    both = {t: 8 * t * 64**2 + 4 * t**2 * 64 for t in (n, m)}  # one attention
    full, short = 4 * n * 64 * 256, 4 * m * 64 * 256  # one MLP
    for attended, longer in ((0, 2), (1, 3), (3, 5)):
        wanted = longer * both[n] + (6 - longer) * both[m] + 2 * full + 4 * short
        assert plan(attended).operations == wanted


# Packed towers ---------------------------------------------------------------------------------------


def packed_by_hand(model: Any, x: Tensor, grids: Any, share: float, attended: int, k: int) -> Any:
    """IPCV in a packed tower: every image and slice for itself; after its last block, `[t * p, c]`."""
    found, deep = list[Tensor](), list[list[Tensor]]()
    with torch.no_grad():
        for image in plain_qwen.images(model, x, grids):
            found.append(_one(model, image, share, attended, k, deep_of := []))
            deep.append(deep_of)
    return torch.cat(found), [torch.cat(rows) for rows in zip(*deep, strict=True)]


def _one(model: Any, image: Any, share: float, attended: int, k: int, deep: list[Tensor]) -> Tensor:
    whole = image
    n, p, c = image.x.shape
    keep = max(1, int(n * share + 0.5))
    first, kept, before = image.x, torch.arange(n), image.x
    deepstack = list(getattr(model, "deepstack_visual_indexes", ()))

    def back(left: Any) -> Any:
        rows = moved(first.flatten(1), left.x.flatten(1), kept, k)
        return replace(whole, x=rows.view(n, p, c))

    for i, block in enumerate(model.blocks):
        if i == 3:
            change = (image.x - before).flatten(1).norm(dim=-1)
            first = image.x
            kept = change.argsort(descending=True, stable=True)[:keep].sort().values
            image = replace(image, x=image.x[kept], place=image.place[kept], mass=image.mass[kept])
        before = image.x
        if i < 3 or i >= 3 + attended:
            image, _ = plain_qwen.attended(model, i, image)
        else:
            wide, _ = plain_qwen.attended(model, i, back(image))
            image = replace(image, x=wide.x[kept])
        m = len(image.x)
        more = block.mlp(block.norm2(image.x.reshape(m * p, c)))
        image = replace(image, x=image.x + more.reshape(m, p, c))
        if i in deepstack:
            rows = (back(image) if i >= 3 else image).x.flatten(0, 1)
            deep.append(model.deepstack_merger_list[deepstack.index(i)](rows))
    return back(image).x.flatten(0, 1)


@BOTH
@pytest.mark.parametrize("attended", [0, 1, 2])
def test_a_packed_tower_is_the_loop_by_hand_image_by_image(kind: str, attended: int) -> None:
    model = tower(kind)
    x = pixels(model, MIXED)
    zoo = tokenzoo.build("ipcv", keep=0.4, attended=attended, neighbours=3)
    with zoo.attach(model) as attached, torch.no_grad():
        output = model(x, grid_thw=torch.tensor(MIXED))
        assert output.pooler_output.shape[0] == sum(sizes())
        for one in attached.passes:
            assert (one.counts, one.features) == (attached.plan(one.tokens).blocks, one.tokens)
            assert one.counts[-1] == int(one.tokens * 0.4 + 0.5)
    rows, deep = packed_by_hand(model, x, MIXED, 0.4, attended, 3)
    with torch.no_grad():
        assert gap(output.pooler_output, model.merger(rows)) <= 1e-5
    if deep:  # what inner blocks hand the language model is whole, too
        assert len(deep) == len(output.deepstack_features)
        for own, wanted in zip(output.deepstack_features, deep, strict=True):
            assert gap(own, wanted) <= 1e-5


@BOTH
def test_an_image_of_a_packed_tower_alone_is_as_among_others(kind: str) -> None:
    model = tower(kind)
    x = pixels(model, MIXED)
    with tokenzoo.build("ipcv", keep=0.4, attended=2).attach(model):
        every = run_packed(model, x, MIXED).split(sizes())
        for (own, grid), rows in zip(alone(model, x, MIXED), every, strict=True):
            assert gap(run_packed(model, own, grid), rows) <= 1e-5
    assert torch.equal(run_packed(model, x, MIXED), bare(kind))


# What is refused -------------------------------------------------------------------------------------


def step(**options: Any) -> Step:
    given: dict[str, Any] = {"stage": Stage.BLOCK, "schedule": Once(2), "matcher": DROP}
    return Step(**{**given, "merger": Identity(), **options})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: step(stage=Stage.FEATURES, restorer=CopyBack()), "only blocks remove tokens"),
        (lambda: step(stage=Stage.LLM(2), attended=0), "only blocks remove tokens"),
        (lambda: step(attended=2), "attended=2 without a restorer"),
        (lambda: step(attended=-1), "attended=-1"),
        (lambda: step(restorer=Identity()), "restorer="),
        (lambda: NeighbourUpdate(Similarity("keys")), "it needs keys"),
        (lambda: NeighbourUpdate(NegativeSquaredDistance(), 0), "k=0"),
        (lambda: FeatureChange("entered"), "nothing changes from a layer to itself"),
        (lambda: tokenzoo.build("ipcv", layer=0), "layer=0"),
    ],
)
def test_what_cannot_be_made(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(BadArgumentError, match=said):
        make()


RECEIVED = SelectAssign(TopK(ReceivedAttention()), Drop())
LATER = Step(Stage.FEATURES, Once(keep=0.5), RECEIVED, Identity())
FUSED = SelectAssign(TopK(FeatureNorm()), Fuse())
RAGGED = SelectAssign(Above(FeatureNorm(), 1.0), Drop())


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((step(matcher=RECEIVED, attended=0),), "shows received_attention: use attended=1"),
        ((step(restorer=CopyBack()), LATER), "its later step needs received_attention"),
        ((step(matcher=FUSED, restorer=CopyBack()),), "its restorer needs positions"),
        ((step(matcher=RAGGED, restorer=CopyBack()),), "a restorer needs a fixed count"),
    ],
)
def test_what_cannot_be_attached(steps: tuple[Step, ...], said: str) -> None:
    model = tiny(SIGLIP, depth=4)
    recipe = Recipe(*steps, keep=8, proportional_attention=steps[0].matcher is RAGGED)
    with pytest.raises(AttachError, match=said):
        tokenzoo.build(recipe).attach(model)
    assert traces(model) == []


def test_the_first_block_has_no_block_before_it() -> None:
    model = tiny(SIGLIP, depth=4)
    match = SelectAssign(TopK(FeatureChange()), Drop())
    with (
        tokenzoo.build(Recipe(step(matcher=match, schedule=Once(0)), keep=8)).attach(model),
        pytest.raises(MissingEvidenceError, match="previous"),
    ):
        run(model, images(model))


def test_a_step_after_the_blocks_finds_all_tokens_again() -> None:
    model = EVA02.build(depth=4, img_size=84)
    n = 36
    later = Step(Stage.FEATURES, Once(keep=2.0), DROP, Identity())
    recipe = Recipe(step(restorer=CopyBack(), attended=2), later, keep=9)
    with tokenzoo.build(recipe).attach(model, trace=True) as attached, torch.no_grad():
        found = model.forward_features(images(model))
        assert attached.counts == (n, n, 9, 9)
        assert (attached.features, found.shape[1]) == (18, 19)
        assert attached.plan().features == 18
