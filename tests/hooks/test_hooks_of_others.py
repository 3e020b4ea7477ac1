"""What hooks of others do to a block's output counts, also with `restore=True`."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenzoo
from tests.adapters.models import gap
from tests.hooks.running import blocks_of, made, pooled
from tokenzoo.errors import AttachError
from tokenzoo.hooks.reduction import Event
from tokenzoo.token_map import TokenMap

Made = tuple[nn.Module, nn.Module, Callable[[], Tensor]]
"""A model, the block that is hooked, and a call of the model."""


def prepared(name: str) -> Made:
    model, call = made(name, 4)
    return model, blocks_of(model, 4)[2], lambda: pooled(call())


EACH = pytest.mark.parametrize(
    "tower",
    [
        *("timm ViT", "timm ViT with a mean", "timm SigLIP", "torchvision", "open_clip"),
        *("siglip", "dinov2"),
    ],
)
RECIPES = pytest.mark.parametrize("name", ["tome", "random"])


def hooked(subject: Made, hook: Callable[..., Any], **options: Any) -> Tensor:
    """What a model gives while its block has a forward hook."""
    _, block, call = subject
    handle = block.register_forward_hook(hook, **options)
    try:
        return call()
    finally:
        handle.remove()


def composed(events: list[Event]) -> TokenMap:
    """From the first tokens to those that leave the hooked block."""
    first, *later = [event.plan for event in events if event.block <= 2]
    return reduce(TokenMap.then, later, first)


@EACH
@RECIPES
@pytest.mark.parametrize("early", [False, True], ids=["", "prepended"])
@torch.no_grad()
def test_an_edit_in_place_acts(tower: str, name: str, early: bool) -> None:
    """As without `restore`, where it is an edit of the few tokens that the next block reads."""
    subject = prepared(tower)
    found: list[tuple[Tensor, Tensor]] = []
    for restore in (False, True):
        with tokenzoo.build(name, keep=6).attach(subject[0], restore=restore):
            edited = hooked(subject, lambda block, args, out: out.mul_(0.3), prepend=early)
            found.append((subject[2](), edited))
    (plain, wanted), (restored, edited) = found
    assert torch.equal(restored, plain)
    assert gap(wanted, plain) > 1e-3
    assert gap(edited, wanted) <= 1e-5


@EACH
@RECIPES
def test_the_rows_of_a_token_share_its_gradient(tower: str, name: str) -> None:
    """There is one gradient, as Grad-CAM reads it; dropped rows have none."""
    subject, events = prepared(tower), list[Event]()
    seen: list[Tensor] = []

    def watch(block: nn.Module, args: Any, out: Tensor) -> None:
        out.register_hook(seen.append)

    for restore in (False, True):
        events.clear()
        zoo = tokenzoo.build(name, keep=6)
        with zoo.attach(subject[0], restore=restore, on_reduce=events.append):
            hooked(subject, watch).square().sum().backward()
    few, whole = seen
    plan = composed(events)
    rows = plan.sum(torch.ones_like(plan.dst, dtype=torch.float32))
    wanted = plan.unmerge(few / rows[..., None])
    assert gap(whole, wanted) <= 1e-4 * float(wanted.abs().max())


@torch.no_grad()
def test_an_edit_of_one_row_moves_its_token_by_its_share() -> None:
    subject, events = prepared("timm ViT"), list[Event]()
    model, _, call = subject
    change = torch.randn(48, generator=torch.Generator().manual_seed(0))
    zoo = tokenzoo.build("tome", keep=6)
    with zoo.attach(model, on_reduce=events.append):
        call()
        plan = composed(events)
        slot = int(plan.sum(torch.ones(3, 50))[0].argmax())
        rows = (plan.dst[0] == slot).nonzero().flatten().tolist()
        assert len(rows) > 1

        def move(block: nn.Module, args: Any, out: Tensor) -> None:
            out[0, slot] += change / len(rows)

        wanted = hooked(subject, move)
    with zoo.attach(model, restore=True):
        for row in (rows[0], rows[-1]):

            def edit(block: nn.Module, args: Any, out: Tensor, row: int = row) -> None:
                out[0, row] += change

            assert gap(hooked(subject, edit), wanted) <= 1e-5
        assert gap(call(), wanted) > 1e-3


@pytest.mark.parametrize("tower", ["timm ViT", "siglip"])
@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("what", ["forward", "backward"])
def test_a_new_tensor_is_refused(tower: str, restore: bool, what: str) -> None:
    subject = prepared(tower)
    with tokenzoo.build("tome", keep=6).attach(subject[0], restore=restore):
        if what == "forward":
            with pytest.raises(AttachError, match="returns a new tensor"):
                hooked(subject, lambda block, args, out: out * 2)
        else:
            subject[1].register_full_backward_hook(lambda *args: None)
            with pytest.raises(AttachError, match="register_hook of the block's output"):
                subject[2]()
