"""No recipe that needs no full map ever makes one: every tensor of a pass is looked at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tokenzoo
from tests.adapters.models import (
    CLIP,
    DEIT3,
    DINO_REG,
    DINOV3,
    PE,
    REG_GAP,
    ROPE_MIXED,
    SIGLIP,
    VIT,
    Case,
    images,
)
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.schedules import Skip
from tokenzoo.scorers import CLSAttention, ReceivedAttention

BATCH, HEADS, WIDTH = 2, 2, 48
PLAIN = [VIT, DEIT3, DINO_REG, CLIP, SIGLIP, REG_GAP, DINOV3, ROPE_MIXED, PE]


class Watcher(TorchDispatchMode):
    """Look at whatever any operator returns, and remember what is a map of all heads.

    Args:
        lengths: all numbers of tokens in the pass, with and without prefix tokens.
    """

    def __init__(self, lengths: set[int], batch: int = BATCH, heads: int = HEADS) -> None:
        super().__init__()
        self.lengths = lengths
        self.batch = batch
        self.heads = heads
        self.maps: list[tuple[str, tuple[int, ...]]] = []
        self.operators: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operators.add(str(func))
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and self.is_map(value):
                self.maps.append((str(func), tuple(value.shape)))
        return out

    def is_map(self, value: Tensor) -> bool:
        """[b, h, n, n], or as many numbers in another shape, with queries or keys cut to the patches."""
        if value.ndim < 2:
            return False
        rows, columns = value.shape[-2:]
        if rows not in self.lengths or columns not in self.lengths:
            return False
        heads = value.ndim == 4 and value.shape[1] == self.heads
        return heads or value.numel() >= self.batch * self.heads * rows * columns


def lengths(counts: tuple[int, ...], before: int, prefix: int) -> set[int]:
    """All numbers of tokens in a pass."""
    found = {before, *counts}
    found |= {n + prefix for n in found}
    assert WIDTH // HEADS not in found  # otherwise queries would look like a map
    assert WIDTH not in found
    return found


def watched(model: nn.Module, case: Case, counts: tuple[int, ...]) -> Watcher:
    """A pass under the watcher."""
    watcher = Watcher(lengths(counts, case.grid[0] * case.grid[1], case.prefix))
    x = images(model)
    with torch.no_grad(), watcher:
        model(x)
    return watcher


@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.name)
@pytest.mark.parametrize(
    ("name", "keep"),
    [("evoprune", 0.25), ("tome", 17), ("uniform", 0.5), ("pool", 0.25), ("random", 17)],
)
def test_no_map_of_all_heads_is_made(case: Case, name: str, keep: float) -> None:
    model = case.build(depth=4)
    attached = tokenzoo.build(name, keep=keep).attach(model)
    watcher = watched(model, case, attached.plan().blocks)
    assert attached.counts == attached.plan().blocks
    assert watcher.maps == []
    assert any("scaled_dot_product" in name and "math" not in name for name in watcher.operators)


@pytest.mark.parametrize(
    "options",
    [
        {"queries": "patches"},
        {"by_mass": True},
        {"proportional_attention": True},
        {"proportional_attention": False},
        {"sticky": True},
        {"features": "keys", "density": "keys"},
        {"features": "all_keys", "density": "all_keys"},
        {"features": "x", "density": "x"},
        {"curve": "exp"},
        {"curve": "sigmoid"},
    ],
    ids=str,
)
def test_nor_with_the_options_of_evoprune(options: dict[str, Any]) -> None:
    model = DINO_REG.build()
    attached = tokenzoo.build("evoprune", **options).attach(model)
    assert watched(model, DINO_REG, attached.plan().blocks).maps == []


@pytest.mark.parametrize("scorer", [CLSAttention(), ReceivedAttention()], ids=repr)
def test_nor_where_attention_is_the_score(scorer: Any) -> None:
    model = VIT.build(depth=4)
    step = Step(Stage.BLOCK, Skip(), SelectAssign(TopK(scorer), Drop()), Identity())
    attached = tokenzoo.build(Recipe(step, keep=33)).attach(model)
    assert watched(model, VIT, attached.plan().blocks).maps == []


@pytest.mark.parametrize("name", ["evoprune", "tome"])
def test_nor_in_training(name: str) -> None:
    model = VIT.build().train()
    attached = tokenzoo.build(name).attach(model)
    watcher = Watcher(lengths(attached.plan().blocks, 196, 1))
    x = images(model)
    with watcher:
        model(x).square().sum().backward()
    assert watcher.maps == []
    assert "aten.mm.default" in watcher.operators  # the backward pass was watched as well


def test_the_bare_model_makes_none() -> None:
    assert watched(VIT.build(), VIT, ()).maps == []


def test_it_finds_the_map_of_an_attention_that_is_not_fused() -> None:
    """Also in the middle of a reduced pass."""
    model = VIT.build()
    attached = tokenzoo.build("uniform", keep=49).attach(model)
    for index in (0, 6):
        model.blocks[index].attn.fused_attn = False
    found = watched(model, VIT, attached.plan().blocks).maps
    assert ("aten.bmm.default", (4, 197, 197)) in found
    softmaxes = [shape for name, shape in found if name == "aten._softmax.default"]
    assert softmaxes == [(2, 2, 197, 197), (2, 2, 50, 50)]


def test_it_finds_a_score_that_is_taken_from_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """What EvoPrune would do without a kernel: softmax(q k^T) for all heads, then the mean."""

    def naive(self: ReceivedAttention, evidence: Any) -> Tensor:
        seen = evidence.attention
        weights = (seen.query @ seen.key.mT * seen.scale).softmax(-1)
        return weights.mean((1, 2))[:, seen.prefix :]

    monkeypatch.setattr(ReceivedAttention, "score", naive)
    model = VIT.build()
    attached = tokenzoo.build("evoprune").attach(model)
    found = watched(model, VIT, attached.plan().blocks).maps
    before = (196, *attached.counts)[1::2]
    assert {shape[-1] for _, shape in found} == {n + 1 for n in before[:4]}


def test_it_finds_every_form_of_a_map() -> None:
    query = torch.randn(BATCH, HEADS, 9, 24)
    for make in (
        lambda: query @ query.mT,
        lambda: torch.einsum("bhid,bhjd->bijh", query, query).movedim(-1, 1),
        lambda: query.flatten(0, 1) @ query.flatten(0, 1).mT,
        lambda: (query @ query.mT)[..., 1:],
        lambda: F.scaled_dot_product_attention(
            query, query, query, attn_mask=torch.zeros(BATCH, HEADS, 9, 9)
        ),
    ):
        watcher = Watcher({9, 8})
        with watcher:
            make()
        assert watcher.maps
    watcher = Watcher({9, 8})
    with watcher:
        query.mean(1) @ query.mean(1).mT  # one map for all heads: the similarity of the keys
        query[:, 0] @ query[:, 0].mT  # one head at a time
    assert watcher.maps == []
