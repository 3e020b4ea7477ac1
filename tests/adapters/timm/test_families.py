"""Models whose attention knows positions: every token keeps its own, whatever goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenzoo_adapters.timm.eva import _gathered
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import tokenzoo
from tests.adapters.models import (
    BEIT,
    BEIT_SHARED,
    DINOV3,
    EVA02,
    EVA1,
    GAP,
    PE,
    POSITIONAL,
    RELPOS,
    RELPOS_POST,
    ROPE,
    ROPE_MIXED,
    SRELPOS,
    VIT,
    Case,
    gap,
    images,
    traces,
)
from tests.adapters.models import one_thread as one_thread
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import AttachError
from tokenzoo.evidence import Evidence
from tokenzoo.hooks.attach import find_adapter
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.parts import Scorer
from tokenzoo.schedules import Once, Skip
from tokenzoo.scorers import FeatureNorm

FAMILIES = pytest.mark.parametrize("case", [*POSITIONAL, EVA1], ids=lambda case: case.family)


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def largest(block: int, keep: int) -> Recipe:
    """Keep the largest tokens of one block, and drop the others."""
    step = Step(Stage.BLOCK, Once(block), SelectAssign(TopK(FeatureNorm()), Drop()), Identity())
    return Recipe(step, keep=keep)


class Attention(TorchFunctionMode):
    """Sees all fused attentions of a pass, and may change the masks they are given."""

    def __init__(self, change: Callable[[int, Tensor, Tensor | None], Any] | None = None) -> None:
        super().__init__()
        self.change = change
        self.calls: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        q, k, v, *rest = args
        mask = rest[0] if rest else kwargs.pop("attn_mask", None)
        if self.change is not None:
            mask = self.change(len(self.calls), k, mask)
        self.calls.append((q, k, mask))
        kwargs.pop("dropout_p", None)
        return func(q, k, v, mask)


@FAMILIES
def test_dropped_tokens_are_as_good_as_masked(case: Case) -> None:
    """What is left sees what it would see if the others were masked: positions are right."""
    model = case.build(depth=5)
    x = images(model)
    with tokenzoo.build(largest(2, 40)).attach(model, trace=True) as attached, torch.no_grad():
        found = model.forward_features(x)
        keep = attached.record.keep  # [b, prefix + 40]

    def mask_dropped(call: int, key: Tensor, mask: Tensor | None) -> Tensor | None:
        if call <= 2:
            return mask
        gone = torch.ones(key.shape[0], key.shape[2], dtype=torch.bool).scatter(1, keep, False)
        bias = torch.zeros(key.shape[0], 1, 1, key.shape[2]).masked_fill(gone[:, None, None], -1e9)
        return bias if mask is None else mask + bias

    with torch.no_grad(), Attention(mask_dropped):
        whole = model.forward_features(x)
    expected = whole.gather(1, keep[..., None].expand(-1, -1, 48))
    assert gap(found, expected) <= 1e-5
    with torch.no_grad():
        bare = model.forward_features(x)
    assert gap(bare.gather(1, keep[..., None].expand(-1, -1, 48)), expected) > 1e-3


@pytest.mark.parametrize("case", [EVA02, DINOV3, ROPE, PE], ids=lambda case: case.family)
def test_a_merged_token_has_the_angles_of_the_one_it_was_merged_into(case: Case) -> None:
    model = case.build(depth=6)
    full = (
        find_adapter(model)
        .probe_inputs(0)[1]["rope"]
        .new_tensor(model.rope.get_embed(case.grid).tolist())
    )
    seen: list[Tensor] = []
    for block in model.blocks:
        block.attn.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["rope"]), with_kwargs=True
        )
    with tokenzoo.build("tome", keep=60).attach(model, trace=True) as attached:
        seen.clear()
        run(model, images(model))
        assert seen[0].shape == full.shape
        # The last merge is in the last block: the angles of its attention belong to the tokens before.
        rope = seen[-1]
        assert rope.shape == (2, 1, attached.counts[-2], full.shape[-1])
        place = attached.record.keep[:, case.prefix :] - case.prefix
        rows = [{tuple(row) for row in image[0].tolist()} for image in rope]
        for image in range(2):
            assert all(tuple(row) in rows[image] for row in full[place[image]].tolist())


@pytest.mark.parametrize(
    "case", [BEIT, BEIT_SHARED, RELPOS, SRELPOS, RELPOS_POST], ids=lambda c: c.family
)
def test_a_bias_of_pairs_is_gathered_for_the_tokens_that_are_left(case: Case) -> None:
    model = case.build(depth=5)
    x = images(model)
    with Attention() as bare, torch.no_grad():
        model(x)
    with tokenzoo.build(largest(2, 40)).attach(model, trace=True) as attached:
        with Attention() as reduced:
            run(model, x)
        keep = attached.record.keep
    for call, ((_, _, whole), (_, key, few)) in enumerate(
        zip(bare.calls, reduced.calls, strict=True)
    ):
        assert whole is not None
        assert few is not None
        if call <= 2:
            assert torch.equal(whole, few)
            continue
        assert few.shape == (2, 2, key.shape[2], key.shape[2])
        for image in range(2):
            at = keep[image]
            assert torch.equal(few[image], whole[0][:, at][:, :, at])


class Seen(Scorer):
    """Remembers the evidence that it is shown."""

    needs = frozenset({"received_attention", "attention"})

    def __init__(self) -> None:
        self.found: list[dict[str, Tensor]] = []

    def score(self, evidence: Evidence) -> Tensor:
        n = evidence.x.shape[1]
        some = torch.tensor([[0, 5, n - 1]]).expand(evidence.x.shape[0], -1)
        self.found.append(
            {
                "received": evidence.received_attention,
                "patches": evidence.attention.received("patches"),
                "rows": evidence.rows(some),
                "x": evidence.x,
            }
        )
        return evidence.received_attention


@pytest.mark.parametrize(
    "case", [ROPE_MIXED, BEIT, BEIT_SHARED, SRELPOS, VIT], ids=lambda c: c.family
)
def test_the_attention_that_is_shown_is_the_models_own(case: Case) -> None:
    """Rotary angles and biases are in it; at the second site also those of fewer tokens."""
    model = case.build(depth=6)
    x = images(model)
    scorer = Seen()
    step = Step(Stage.BLOCK, Skip(), SelectAssign(TopK(scorer), Drop()), Identity())
    tokenzoo.build(Recipe(step, keep=50)).attach(model)
    scorer.found.clear()
    with Attention() as seen:
        run(model, x)
    sites = [call for index, call in enumerate(seen.calls) if index % 2 == 1]
    assert len(sites) == len(scorer.found) == 3
    p = case.prefix
    for (q, k, mask), found in zip(sites, scorer.found, strict=True):
        logits = q @ k.mT * q.shape[-1] ** -0.5
        weights = (logits if mask is None else logits + mask).softmax(-1)  # [b, h, n, n]
        torch.testing.assert_close(found["received"], weights.mean((1, 2))[:, p:])
        torch.testing.assert_close(found["patches"], weights[:, :, p:].mean((1, 2))[:, p:])
        n = weights.shape[-1]
        rows = weights[:, :, [p, p + 5, n - 1], p:]
        torch.testing.assert_close(found["rows"], rows)


@pytest.mark.parametrize(
    "case", [EVA02, ROPE_MIXED, BEIT_SHARED, RELPOS_POST], ids=lambda c: c.family
)
def test_gradients_reach_the_positions(case: Case) -> None:
    model = case.build(depth=4)
    tokenzoo.build("evoprune", keep=0.5).attach(model)
    model(images(model)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    tables = [
        value
        for name, value in model.named_parameters()
        if any(word in name for word in ("relative_position_bias_table", "rope", "rel_pos"))
    ]
    assert all(bool((table.grad != 0).any()) for table in tables)
    assert tables or case is EVA02


def test_angles_that_come_with_a_batch_are_gathered_too() -> None:
    """Patch dropout in training makes them so."""
    rope = torch.randn(7, 4)
    places = torch.tensor([[0, 2, 6], [1, 1, 5]])
    expected = torch.stack([rope[row] for row in places])[:, None]
    assert torch.equal(_gathered(rope, places), expected)
    assert torch.equal(_gathered(rope.expand(2, 1, 7, 4), places), expected)
    heads = torch.randn(3, 7, 4)
    by_head = torch.stack([heads[:, row] for row in places])
    assert torch.equal(_gathered(heads, places), by_head)
    assert torch.equal(_gathered(heads.expand(2, 3, 7, 4), places), by_head)


@pytest.mark.parametrize("case", [ROPE, ROPE_MIXED], ids=lambda c: c.family)
def test_patch_dropout_in_training(case: Case) -> None:
    model = case.build(depth=4, patch_drop_rate=0.25).train()
    attached = tokenzoo.build("evoprune", keep=0.5).attach(model)
    model(images(model)).sum().backward()
    assert attached.counts[-1] == 74  # half of the 147 that are left of 196, rounded up


def test_images_of_another_size() -> None:
    model = DINOV3.build()
    attached = tokenzoo.build("evoprune", keep=0.25).attach(model)
    run(model, images(model, size=(160, 320)))
    assert attached.counts == attached.plan(200).blocks
    with tokenzoo.build("downsample", keep=0.25).attach(model, replace=True) as attached:
        run(model, images(model))
        assert attached.counts == (64,) * 8


@pytest.mark.parametrize("case", [ROPE, BEIT], ids=lambda c: c.family)
def test_images_of_models_of_one_size_cannot_be_shrunk(case: Case) -> None:
    model = case.build()
    with pytest.raises(AttachError, match=r"works at Stage\.IMAGE.*can be reduced at block"):
        tokenzoo.build("downsample").attach(model)
    assert traces(model) == []


@pytest.mark.parametrize("case", [VIT, GAP], ids=lambda c: c.family)
def test_an_attention_that_depends_on_the_order_is_refused(case: Case) -> None:
    """Positions that nobody follows: the proof sees that the order matters."""
    model = case.build()
    model.blocks[3].norm1 = nn.Sequential(model.blocks[3].norm1, _Ramp())
    with pytest.raises(AttachError, match=r"blocks\.3 .*come backwards.*depends on positions"):
        tokenzoo.build("random").attach(model)
    assert traces(model) == []


class _Ramp(nn.Module):
    """Makes later tokens larger: a position, of a kind."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + torch.linspace(0, 1, x.shape[1])[:, None])
