"""Models of timm whose attention knows positions; of most, see tests/adapters/test_towers.py."""

from __future__ import annotations

import pytest
import torch
from tokenzoo_adapters.timm.eva import _gathered
from torch import Tensor, nn

import tokenzoo
from tests.adapters import models as of_timm
from tests.adapters.models import Case, gap, images, largest, run, traces
from tokenzoo.errors import AttachError
from tokenzoo.hooks.attach import find_adapter


def cases(*some: Case) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", some, ids=lambda case: case.family)


@cases(of_timm.EVA02, of_timm.DINOV3, of_timm.ROPE, of_timm.PE)
def test_a_merged_token_has_the_angles_of_the_one_it_was_merged_into(case: Case) -> None:
    model = case.build(depth=6)
    probe = find_adapter(model).probe_inputs(0)[1]["rope"]
    full = probe.new_tensor(model.rope.get_embed(case.grid).tolist())
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
        for image in range(2):
            there = {tuple(row) for row in rope[image, 0].tolist()}
            assert there >= {tuple(row) for row in full[place[image]].tolist()}


def test_absolute_positions_alone_are_followed_too() -> None:
    """EVA has no angles; its last block drops tokens, and the others are those of the bare model."""
    model = of_timm.EVA1.build(depth=3)
    x = images(model)
    with torch.no_grad():
        bare = model.forward_features(x)
        with tokenzoo.build(largest(2, 40)).attach(model, trace=True) as attached:
            found = model.forward_features(x)
            keep = attached.record.keep
    assert gap(found, bare.gather(1, keep[..., None].expand(-1, -1, 48))) <= 1e-5


def test_angles_that_come_with_a_batch_are_gathered_too() -> None:
    """Patch dropout in training makes them so."""
    rope, heads = torch.randn(7, 4), torch.randn(3, 7, 4)
    places = torch.tensor([[0, 2, 6], [1, 1, 5]])
    expected = torch.stack([rope[row] for row in places])[:, None]
    by_head = torch.stack([heads[:, row] for row in places])
    for given, wanted in (
        (rope, expected),
        (rope.expand(2, 1, 7, 4), expected),
        (heads, by_head),
        (heads.expand(2, 3, 7, 4), by_head),
    ):
        assert torch.equal(_gathered(given, places), wanted)


@cases(of_timm.ROPE, of_timm.ROPE_MIXED)
def test_patch_dropout_in_training(case: Case) -> None:
    model = case.build(depth=4, patch_drop_rate=0.25).train()
    attached = tokenzoo.build("evoprune", keep=0.5).attach(model)
    model(images(model)).sum().backward()
    assert attached.counts[-1] == 74  # half of the 147 that are left of 196, rounded up


@cases(of_timm.ROPE, of_timm.BEIT)
def test_images_of_models_of_one_size_cannot_be_shrunk(case: Case) -> None:
    model = case.build()
    with pytest.raises(AttachError, match=r"works at Stage\.IMAGE.*can be reduced at block"):
        tokenzoo.build("downsample").attach(model)
    assert traces(model) == []


class Ramp(nn.Module):
    """Makes later tokens larger: a position, of a kind."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + torch.linspace(0, 1, x.shape[1])[:, None])


@cases(of_timm.VIT, of_timm.GAP)
def test_an_attention_that_depends_on_the_order_is_refused(case: Case) -> None:
    """Positions that nobody follows: the proof sees that the order matters."""
    model = case.build()
    model.blocks[3].norm1 = nn.Sequential(model.blocks[3].norm1, Ramp())
    with pytest.raises(AttachError, match=r"blocks\.3 .*depends on positions"):
        tokenzoo.build("random").attach(model)
    assert traces(model) == []
