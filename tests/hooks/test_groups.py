"""Towers in batches whose tokens are groups of 2 x 2 patches: whole groups are merged and dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokenzoo
from tests.compiling import clean_compiler as clean_compiler
from tokenzoo import Recipe, Step, plugins
from tokenzoo.adapter import Adapter, BlockPath
from tokenzoo.errors import AttachError
from tokenzoo.evidence import Evidence
from tokenzoo.hooks.reduction import Event
from tokenzoo.hookspecs import hookimpl
from tokenzoo.matchers import Drop, Nearest, SelectAssign, TopK
from tokenzoo.mergers import Identity, WeightedMean
from tokenzoo.parts import Scorer
from tokenzoo.recipe import Stage
from tokenzoo.schedules import Explicit, Once
from tokenzoo.scorers import Random, Similarity

WIDTH, HEADS, SIDE = 8, 2, 2
ROWS, COLUMNS = 3, 4  # of groups
GROUPS, PATCHES = ROWS * COLUMNS, SIDE * SIDE

# [groups, patches]: groups in raster order, patches of a group in raster order.
MEMBERS = (
    torch.arange(GROUPS * PATCHES)
    .view(ROWS, SIDE, COLUMNS, SIDE)
    .permute(0, 2, 1, 3)
    .reshape(GROUPS, PATCHES)
)


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions on `[b, h, n, d]`, angles `[n, d / 2]` or `[b, 1, n, d / 2]`."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


class Attention(nn.Module):
    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def heads(self, x: Tensor, angles: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        b, n = x.shape[:2]
        q, k, v = self.qkv(x).view(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if angles is not None:
            p = self.prefix
            q, k = (torch.cat([y[:, :, :p], turned(y[:, :, p:], angles)], 2) for y in (q, k))
        return q, k, v

    def forward(self, x: Tensor, angles: Tensor | None = None) -> Tensor:
        q, k, v = self.heads(x, angles)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Its second branch is multiplied by a bare parameter after its last module."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(WIDTH), Attention(prefix)
        self.norm2, self.mlp = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor, angles: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), angles=angles)
        return x + self.scale * self.mlp(self.norm2(x))


class Tower(nn.Module):
    """Tokens of an image `[b, 3, 6, 8]`: a pixel is a patch.

    Args:
        prefix: CLS tokens.
        rotary: whether positions act inside the attention.
    """

    def __init__(self, prefix: int, rotary: bool) -> None:
        super().__init__()
        self.prefix, self.rotary = prefix, rotary
        self.embed, self.norm = nn.Linear(3, WIDTH), nn.LayerNorm(WIDTH)
        self.cls = nn.Parameter(torch.empty(1, prefix, WIDTH))
        self.blocks = nn.ModuleList(Block(prefix) for _ in range(4))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
                if parameter.ndim == 1:
                    parameter.add_(1)

    def start(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.embed(image.flatten(2).mT)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
        n = x.shape[1] - self.prefix
        angles = torch.arange(2.0 * n).view(n, 2).sin() * 3 if self.rotary else None
        return x, angles

    def forward(self, image: Tensor) -> Tensor:
        x, angles = self.start(image)
        for block in self.blocks:
            x = block(x, angles=angles)
        return self.norm(x)


@dataclass(frozen=True, eq=False)
class Grouped(Adapter):
    model: Tower
    scale: str = "scale"

    stages = frozenset({"block", "features"})
    width = WIDTH
    mlp_dim = WIDTH
    group = PATCHES

    @property
    def prefix(self) -> int:
        return self.model.prefix

    @property
    def provides(self) -> frozenset[str]:
        shown = {"x", "mass", "keys", "queries", "values", "received_attention", "attention"}
        return frozenset(shown | {"grid"} | ({"cls_attention"} if self.prefix else set()))

    @property
    def positional(self) -> bool:
        return self.model.rotary

    def blocks(self) -> tuple[BlockPath, ...]:
        names = [f"blocks.{i}" for i in range(len(self.model.blocks))]
        return tuple(
            BlockPath(name, "attention", "norm2", "mlp", branch2_scale=self.scale) for name in names
        )

    def passthrough_modules(self) -> tuple[str, ...]:
        return ("norm",)

    def adapt_block_inputs(
        self, extra: tuple[Any, ...], options: dict[str, Any], places: Tensor | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        angles = options["angles"]
        if angles is None or places is None:
            return extra, options
        return extra, {"angles": angles[places[:, self.prefix :] - self.prefix][:, None]}

    def probe_inputs(self, index: int) -> tuple[int, dict[str, Any]]:
        rows = 6 * PATCHES
        angles = torch.arange(2.0 * rows).view(rows, 2) if self.model.rotary else None
        return 6, {"angles": angles}

    def tokens(self) -> int:
        return GROUPS

    def grid(self, tokens: int) -> tuple[int, int] | None:
        return (ROWS, COLUMNS) if tokens == GROUPS else None


class Plugin:
    """Knows the towers of this file."""

    scale = "scale"

    @hookimpl
    def tokenzoo_adapter(self, model: Any) -> Adapter | None:
        return Grouped(model, self.scale) if isinstance(model, Tower) else None


@pytest.fixture(autouse=True)
def plugin() -> Any:
    mine = Plugin()
    with plugins.registered(mine):
        yield mine


EACH = pytest.mark.parametrize(
    ("prefix", "rotary"), [(0, False), (1, False), (2, True), (0, True)], ids=str
)


def image(rows: int = ROWS * SIDE, columns: int = COLUMNS * SIDE) -> Tensor:
    return torch.randn(3, 3, rows, columns, generator=torch.Generator().manual_seed(1))


def recipe(
    schedule: Any, scorer: Scorer | None = None, *, merge: bool = True, **more: Any
) -> Recipe:
    """Groups with the lowest scores join the most similar one, or are dropped."""
    target = Nearest(Similarity("keys")) if merge else Drop()
    matcher = SelectAssign(TopK(Random(3) if scorer is None else scorer), target)
    stage = more.pop("stage", Stage.BLOCK)
    return Recipe(Step(stage, schedule, matcher, WeightedMean() if merge else Identity()), **more)


def reference(model: Tower, pixels: Tensor, events: list[Event], proportional: bool) -> Tensor:
    """The tower written out, one image at a time, with the same plans.

    Returns:
        Features `[b, prefix + m * 4, c]`, group by group.
    """
    outs: list[Tensor] = []
    p = model.prefix
    for i in range(len(pixels)):
        x, angles = model.start(pixels[i : i + 1])
        order = MEMBERS.flatten()
        x = torch.cat([x[:, :p], x[:, p:][:, order]], 1)[0]
        angles = None if angles is None else angles[order]
        mass = torch.ones(len(x))
        for index, block in enumerate(model.blocks):
            q, k, v = block.attention.heads(block.norm1(x)[None], angles)
            logits = (q @ k.mT / math.sqrt(q.shape[-1]))[0]
            if proportional:
                logits = logits + mass.log()
            y = (logits.softmax(-1) @ v[0]).transpose(0, 1).flatten(1)
            x = x + block.attention.out(y)
            for event in (event for event in events if event.block == index):
                dst, keep = event.plan.dst[i], event.plan.keep[i]
                m = len(keep)
                new, size = [], []
                for slot in range(p, m):
                    own = [j for j in range(p, len(dst)) if int(dst[j]) == slot]
                    rows = [slice(p + (j - p) * 4, p + (j - p) * 4 + 4) for j in own]
                    weight = torch.stack([mass[row] for row in rows])
                    patches = torch.stack([x[row] for row in rows])  # [joined, 4, c]
                    new.append((patches * weight[..., None]).sum(0) / weight.sum(0)[:, None])
                    size.append(weight.sum(0))
                if angles is not None:
                    angles = angles.view(-1, 4, 2)[keep[p:] - p].flatten(0, 1)
                x, mass = torch.cat([x[:p], *new]), torch.cat([mass[:p], *size])
            x = x + block.scale * block.mlp(block.norm2(x))
        outs.append(model.norm(x))
    return torch.stack(outs)


def regrouped(x: Tensor, prefix: int) -> Tensor:
    """Rows `[b, prefix + 48, c]` group by group."""
    return torch.cat([x[:, :prefix], x[:, prefix:][:, MEMBERS.flatten()]], 1)


@EACH
@pytest.mark.parametrize("name", ["evoprune", "random", "pool"])
@torch.no_grad()
def test_keeping_all_changes_no_bit(prefix: int, rotary: bool, name: str) -> None:
    model = Tower(prefix, rotary)
    bare = model(image())
    with tokenzoo.build(name, keep=1.0).attach(model) as attached:
        assert torch.equal(model(image()), bare)
        assert attached.counts == (GROUPS,) * 4
    with tokenzoo.build(name, keep=5).attach(model) as attached:
        out = model(image())
        assert out.shape[1] == prefix + 5 * PATCHES
        assert attached.counts == attached.plan().blocks
        assert attached.features == 5
        assert attached.mass.shape == (3, prefix + 5)
        whole = name != "random"  # which drops
        assert torch.equal(
            attached.mass.sum(1), torch.full((3,), prefix + (12.0 if whole else 5.0))
        )
    assert torch.equal(model(image()), bare)


@EACH
@pytest.mark.parametrize("stage", [Stage.FEATURES, Stage.BLOCK], ids=["features", "last block"])
@torch.no_grad()
def test_groups_dropped_at_the_end_leave_the_rows_of_the_bare_tower(
    prefix: int, rotary: bool, stage: Stage
) -> None:
    model = Tower(prefix, rotary)
    bare = model(image())
    zoo = tokenzoo.build(recipe(Once(-1), merge=False, keep=5, stage=stage))
    with zoo.attach(model, trace=True) as attached:
        out = model(image())
        kept = attached.record.keep[:, prefix:] - prefix
        rows = (MEMBERS[kept].flatten(1) + prefix)[..., None].expand(-1, -1, WIDTH)
    expected = torch.cat([bare[:, :prefix], bare.gather(1, rows)], 1)
    torch.testing.assert_close(out, expected, rtol=0, atol=0 if stage == Stage.FEATURES else 1e-5)


@EACH
@pytest.mark.parametrize("merge", [True, False], ids=["merge", "drop"])
@pytest.mark.parametrize("proportional", [True, False], ids=["proportional", "plain"])
def test_reductions_between_the_blocks_are_the_tower_written_out(
    prefix: int, rotary: bool, merge: bool, proportional: bool
) -> None:
    model, events = Tower(prefix, rotary), []
    made = recipe(Explicit((4, 0, 3, 0)), merge=merge, proportional_attention=proportional)
    with tokenzoo.build(made).attach(model, on_reduce=events.append) as attached:
        out = model(image())
        assert attached.counts == (8, 8, 5, 5)
        assert [event.after.x.shape[1:] for event in events] == [
            (prefix + 8, 4 * WIDTH),
            (prefix + 5, 4 * WIDTH),
        ]
    expected = reference(model, image(), events, proportional)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    weights = [one for name, one in model.named_parameters() if "attention.qkv.bias" not in name]
    weights = [one for one in weights if one.numel()]
    seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad((out * seed).sum(), weights)
    wanted = torch.autograd.grad((expected * seed).sum(), weights)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@dataclass(frozen=True)
class Probe(Scorer):
    seen: list[Evidence] = field(default_factory=list)
    needs = frozenset({"received_attention", "attention", "keys", "queries", "values"})

    def score(self, evidence: Evidence) -> Tensor:
        self.seen.append(evidence)
        return Random(1).score(evidence)


def per_group(rows: Tensor, prefix: int) -> Tensor:
    """What patches `[..., prefix + n * 4]` get, for each group: `[..., n]`."""
    return rows[..., prefix:].unflatten(-1, (-1, PATCHES)).sum(-1)


@EACH
@torch.no_grad()
def test_the_evidence_is_that_of_the_dense_attention(prefix: int, rotary: bool) -> None:
    model, probe = Tower(prefix, rotary), Probe()
    given: list[tuple[Any, ...]] = []
    made = recipe(Explicit((4, 0, 3, 0)), probe, merge=False)
    with tokenzoo.build(made).attach(model):
        for block in model.blocks:
            block.attention.register_forward_pre_hook(
                lambda module, args, options: given.append((module, args[0], options["angles"])),
                with_kwargs=True,
            )
        probe.seen.clear()
        model(image())
    for evidence, site in zip(probe.seen, (0, 2), strict=True):
        q, k, v = given[site][0].heads(*given[site][1:])
        if site == 0:  # the patches of the first pass are in raster order
            q, k, v = (
                regrouped(y.flatten(0, 1), prefix).unflatten(0, (3, HEADS)) for y in (q, k, v)
            )
        n = (q.shape[2] - prefix) // PATCHES
        full = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)  # [b, h, prefix + 4n, prefix + 4n]
        for found, heads in ((evidence.queries, q), (evidence.keys, k), (evidence.values, v)):
            expected = heads[:, :, prefix:].reshape(3, HEADS, n, -1)
            torch.testing.assert_close(found, expected)
        shown = evidence.attention
        rows = per_group(full[:, :, prefix:], prefix).unflatten(2, (n, PATCHES)).mean(3)
        mass = torch.rand(3, n, generator=torch.Generator().manual_seed(5)) + 0.5
        weight = mass.repeat_interleave(PATCHES, 1)[:, None, :, None]
        close: Any = {"rtol": 1e-4, "atol": 1e-6}
        for found, expected in (
            (evidence.received_attention, per_group(full.mean((1, 2)), prefix)),
            (shown.received("patches"), rows.mean((1, 2))),
            (
                shown.received("patches", mass),
                per_group((full[:, :, prefix:] * weight).sum(2).mean(1), prefix)
                / weight.sum((2, 3)),
            ),
            (shown.received(stride=3), rows[:, :, 1::3].mean((1, 2))),
            (evidence.rows(torch.tensor([[1, n - 1]] * 3)), rows[:, :, [1, n - 1]]),
        ):
            torch.testing.assert_close(found, expected, **close)
        assert ("cls_attention" in evidence.provides) == (prefix > 0)
        if prefix:
            torch.testing.assert_close(evidence.cls_attention, per_group(full[:, :, 0], prefix))
        assert ("grid" in evidence.provides) == (site == 0)


@EACH
@torch.no_grad()
def test_restored_rows_are_in_raster_order(prefix: int, rotary: bool) -> None:
    """A group's rows are those of the group that it is part of; a dropped one keeps what it was."""
    model, lengths = Tower(prefix, rotary), []
    made = recipe(Explicit((0, 4, 0, 3)), merge=True)
    with tokenzoo.build(made).attach(model):
        short = model(image())
    with tokenzoo.build(made).attach(model, restore=True, trace=True) as attached:
        for block in model.blocks:
            block.register_forward_hook(lambda m, a, y: lengths.append(y.shape[1]))
        whole = model(image())
        dst = attached.record.dst
    assert lengths == [prefix + GROUPS * PATCHES] * 4
    grouped = torch.cat(
        [short[:, :prefix, None].expand(-1, -1, 4, -1), short[:, prefix:].unflatten(1, (-1, 4))], 1
    )
    expected = grouped.gather(1, dst[:, :, None, None].expand(-1, -1, 4, WIDTH))
    torch.testing.assert_close(
        regrouped(whole, prefix)[:, prefix:].unflatten(1, (-1, 4)),
        expected[:, prefix:],
        rtol=1e-4,
        atol=1e-5,
    )
    torch.testing.assert_close(whole[:, :prefix], short[:, :prefix], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("clean_compiler")
@pytest.mark.parametrize(("prefix", "rotary", "name"), [(0, True, "evoprune"), (2, False, "tome")])
@torch.no_grad()
def test_compiled_and_exported_as_it_runs(prefix: int, rotary: bool, name: str) -> None:
    model = Tower(prefix, rotary).eval()
    with tokenzoo.build(name, keep=5).attach(model):
        expected = model(image())
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(image()), expected)
        exported = torch.export.export(model, (image(),)).module()
        torch.testing.assert_close(exported(image()), expected)


def test_images_that_are_no_whole_groups_are_refused() -> None:
    model = Tower(1, False)
    attached = tokenzoo.build("random", keep=5).attach(model)
    with pytest.raises(AttachError, match=r"40 patches enter .* whole grid of groups of"):
        model(image(5, 8))
    with pytest.raises(AttachError, match="did not reach the last block"):
        _ = attached.counts


def test_a_scale_that_the_adapter_does_not_name_is_found(plugin: Plugin) -> None:
    plugin.scale = ""
    model = Tower(0, False)
    with pytest.raises(AttachError, match="in the order that the adapter describes"):
        tokenzoo.build("random", keep=5).attach(model)
    assert not hasattr(model, "_tokenzoo_attached")
