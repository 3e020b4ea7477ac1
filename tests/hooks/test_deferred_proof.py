"""`attach(..., prove=False)` runs nothing and refuses later; `attached.left` says which tokens are left."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tokenzoo
from tests.adapters.hf.vlm.qwen import batch, qwen2_5_vl
from tests.adapters.models import VIT, images, largest, traces
from tests.hooks.running import run, tiny
from tests.hooks.test_site import Halved
from tokenzoo.errors import AttachError


def test_a_deferred_proof_runs_no_block_and_changes_no_result() -> None:
    model = tiny()
    x = images(model)
    with tokenzoo.build("evoprune", keep=9).attach(model):
        proved = run(model, x)
    ran: list[Any] = []
    model.blocks[0].register_forward_hook(lambda module, args, out: ran.append(module))
    attached = tokenzoo.build("evoprune", keep=9).attach(model, prove=False)
    assert not ran
    assert torch.equal(run(model, x), proved)
    ran.clear()
    attached.prove()
    assert ran
    assert attached.installed
    assert torch.equal(run(model, x), proved)


def test_a_model_that_fails_the_deferred_proof_is_bare_again() -> None:
    model = tiny()
    model.blocks[1].__class__ = type("Block", (Halved,), {})
    attached = tokenzoo.build("tome", keep=9).attach(model, prove=False)
    with pytest.raises(AttachError, match=r"blocks\.1"):
        attached.prove()
    assert traces(model) == []
    with pytest.raises(AttachError, match="this recipe is detached"):
        attached.prove()


@pytest.mark.parametrize("recipe", ["evoprune", "divprune"])
def test_the_tokens_that_are_left_of_images_of_several_sizes(recipe: str) -> None:
    """As many as planned, and those whose positions the prompt takes."""
    model = qwen2_5_vl()
    given = batch(model)
    grids = given["image_grid_thw"]
    attached = tokenzoo.build(recipe, keep=0.4).attach(model)
    with torch.no_grad():
        model.model.get_image_features(given["pixel_values"], grids)
    whole = [int(t * h * w) // 4 for t, h, w in grids.tolist()]
    adapter: Any = attached.adapter
    expected = adapter.tower.rows.left(whole)
    assert len(set(whole)) > 1
    assert [len(one) for one in attached.left] == [attached.visual_tokens(n) for n in whole]
    assert all(map(torch.equal, attached.left, expected))


def test_the_tokens_that_are_left_of_a_batch() -> None:
    model = VIT.build()
    x = images(model)
    attached = tokenzoo.build(largest(5, 20)).attach(model)
    with pytest.raises(AttachError, match="has not run"):
        _ = attached.left
    run(model, x)
    with pytest.raises(AttachError, match=r"20 of 196 tokens are left.*trace=True"):
        _ = attached.left
    attached = tokenzoo.build(largest(5, 20)).attach(model, trace=True, replace=True)
    run(model, x)
    assert torch.equal(torch.stack(attached.left), attached.record.keep[:, 1:] - 1)
    with attached.paused():
        run(model, x)
    with pytest.raises(AttachError, match="nothing was reduced"):
        _ = attached.left
    attached = tokenzoo.build("evit", keep=100).attach(model, trace=True, replace=True)
    run(model, x)
    with pytest.raises(AttachError, match="have no place"):
        _ = attached.left
