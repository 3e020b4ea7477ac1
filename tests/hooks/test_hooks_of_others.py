"""What hooks of others do to a block's output counts, also with `restore=True`."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenzoo
from tests.adapters.hf import models as hf_models
from tests.adapters.models import GAP, SIGLIP, VIT, Case, gap, images
from tests.adapters.models import one_thread as one_thread
from tests.adapters.test_torchvision_vit import open_clip_vit, torchvision_vit
from tokenzoo.errors import AttachError
from tokenzoo.hooks.reduction import Event
from tokenzoo.token_map import TokenMap

Made = tuple[nn.Module, nn.Module, Callable[[], Tensor]]
"""A model, the block that is hooked, and a call of the model."""


def of_timm(case: Case) -> Made:
    model = case.build(depth=4, img_size=64)
    x = images(model)
    return model, model.blocks[2], lambda: model(x)


def torchvision_() -> Made:
    model, x = torchvision_vit(depth=4), torch.randn(2, 3, 112, 112)
    return model, model.encoder.layers[2], lambda: model(x)


def open_clip_() -> Made:
    model, x = open_clip_vit(depth=4), torch.randn(2, 3, 112, 112)
    return model, model.transformer.resblocks[2], lambda: model(x)


def of_transformers(name: str) -> Made:
    model = hf_models.tower(name, num_hidden_layers=4)
    inputs = hf_models.pixels(model)
    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 4)
    return model, layers[2], lambda: model(**inputs).pooler_output


MODELS: dict[str, Callable[[], Made]] = {
    "vit": lambda: of_timm(VIT),
    "mean": lambda: of_timm(GAP),
    "attention pooling": lambda: of_timm(SIGLIP),
    "torchvision": torchvision_,
    "open_clip": open_clip_,
    "siglip": lambda: of_transformers("siglip"),
    "dinov2": lambda: of_transformers("dinov2"),
}
EACH = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
RECIPES = pytest.mark.parametrize("name", ["tome", "random"])


def hooked(made: Made, hook: Callable[..., Any], **options: Any) -> Tensor:
    """What a model gives while its block has a forward hook."""
    _, block, call = made
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
def test_an_edit_in_place_acts(make: Callable[[], Made], name: str, early: bool) -> None:
    """As without `restore`, where it is an edit of the few tokens that the next block reads."""
    made = make()
    found: list[tuple[Tensor, Tensor]] = []
    for restore in (False, True):
        with tokenzoo.build(name, keep=6).attach(made[0], restore=restore):
            edited = hooked(made, lambda block, args, out: out.mul_(0.3), prepend=early)
            found.append((made[2](), edited))
    (plain, wanted), (restored, edited) = found
    assert torch.equal(restored, plain)
    assert gap(wanted, plain) > 1e-3
    assert gap(edited, wanted) <= 1e-5


@EACH
@RECIPES
def test_the_rows_of_a_token_share_its_gradient(make: Callable[[], Made], name: str) -> None:
    """There is one gradient, as Grad-CAM reads it; dropped rows have none."""
    made, events = make(), list[Event]()
    seen: list[Tensor] = []

    def watch(block: nn.Module, args: Any, out: Tensor) -> None:
        out.register_hook(seen.append)

    for restore in (False, True):
        events.clear()
        zoo = tokenzoo.build(name, keep=6)
        with zoo.attach(made[0], restore=restore, on_reduce=events.append):
            hooked(made, watch).square().sum().backward()
    few, whole = seen
    plan = composed(events)
    rows = plan.sum(torch.ones_like(plan.dst, dtype=torch.float32))
    wanted = plan.unmerge(few / rows[..., None])
    assert gap(whole, wanted) <= 1e-4 * float(wanted.abs().max())


@torch.no_grad()
def test_an_edit_of_one_row_moves_its_token_by_its_share() -> None:
    made, events = MODELS["vit"](), list[Event]()
    model, _, call = made
    change = torch.randn(48, generator=torch.Generator().manual_seed(0))
    zoo = tokenzoo.build("tome", keep=6)
    with zoo.attach(model, on_reduce=events.append):
        call()
        plan = composed(events)
        slot = int(plan.sum(torch.ones(2, 17))[0].argmax())
        rows = (plan.dst[0] == slot).nonzero().flatten().tolist()
        assert len(rows) > 1

        def move(block: nn.Module, args: Any, out: Tensor) -> None:
            out[0, slot] += change / len(rows)

        wanted = hooked(made, move)
    with zoo.attach(model, restore=True):
        for row in (rows[0], rows[-1]):

            def edit(block: nn.Module, args: Any, out: Tensor, row: int = row) -> None:
                out[0, row] += change

            assert gap(hooked(made, edit), wanted) <= 1e-5
        assert gap(call(), wanted) > 1e-3


@pytest.mark.parametrize("make", [MODELS["vit"], MODELS["siglip"]], ids=["vit", "siglip"])
@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("what", ["forward", "backward"])
def test_a_new_tensor_is_refused(make: Callable[[], Made], restore: bool, what: str) -> None:
    made = make()
    with tokenzoo.build("tome", keep=6).attach(made[0], restore=restore):
        if what == "forward":
            with pytest.raises(AttachError, match="returns a new tensor"):
                hooked(made, lambda block, args, out: out * 2)
        else:
            made[1].register_full_backward_hook(lambda *args: None)
            with pytest.raises(AttachError, match="register_hook of the block's output"):
                made[2]()
