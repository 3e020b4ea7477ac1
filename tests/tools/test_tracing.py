"""What is drawn is what happened: the plans of the blocks, composed."""

from __future__ import annotations

import pytest
import torch

import tokenzoo
from tests.adapters.models import REG_GAP, SIGLIP, VIT, Case, images, traces
from tokenzoo.errors import BadArgumentError
from tokenzoo.tools.tracing import grid_of, trace_tokens
from tokenzoo.tools.viz import merged_groups, shrunk_image


@pytest.mark.parametrize(
    ("case", "name"),
    [(VIT, "evoprune"), (VIT, "random"), (SIGLIP, "tome"), (REG_GAP, "evoprune")],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_plans_are_those_of_the_pass_and_so_are_the_pictures(case: Case, name: str) -> None:
    model = case.build()
    x = images(model)
    zoo = tokenzoo.build(name, keep=0.25)
    trace = trace_tokens(zoo, model, x)
    assert traces(model) == []
    with zoo.attach(model, trace=True) as attached, torch.inference_mode():
        assert torch.equal(model(x), trace.output)
        last = trace.plans[max(trace.plans)]
        assert torch.equal(last.dst, attached.record.dst)
        assert torch.equal(last.keep, attached.record.keep)
        counts = attached.counts
    before = (case.grid[0] * case.grid[1], *counts)
    reducing = [block for block, count in enumerate(counts) if count != before[block]]
    assert list(trace.plans) == reducing
    assert len(reducing) > 1
    assert [trace.tokens(block) for block in reducing] == [counts[block] for block in reducing]
    assert (trace.before, trace.grid, trace.prefix) == (before[0], case.grid, case.prefix)
    assert trace.tokens() == counts[-1]
    light = torch.rand(3, *x.shape[2:])
    for block in (reducing[0], None):
        plan = last if block is None else trace.plans[block]
        wanted = merged_groups(light, plan, case.grid, case.prefix, index=1, see_through=0.2)
        assert torch.equal(trace.picture(light, 1, block, see_through=0.2), wanted)


def test_nothing_removed_is_a_grid_of_single_patches() -> None:
    model = VIT.build()
    trace = trace_tokens(tokenzoo.build("evoprune", keep=1.0), model, images(model))
    assert (trace.plans, trace.tokens(), trace.before) == ({}, 196, 196)
    light = torch.rand(3, 224, 224)
    patch = trace.picture(light, 1)[:, 16 * 5 * 2 + 8 : 16 * 5 * 2 + 24, 8:24]
    mean = light[:, 80:96, :16].mean((1, 2))  # every patch has its own
    assert torch.allclose(patch, mean[:, None, None].expand_as(patch), atol=1e-5)


def test_a_smaller_image_is_shown_as_the_model_saw_it() -> None:
    model = VIT.build()
    trace = trace_tokens(tokenzoo.build("downsample", keep=49), model, images(model))
    assert trace.small is not None
    assert trace.small.shape == (2, 3, 112, 112)
    assert (trace.before, trace.tokens(), trace.grid, trace.plans) == (196, 49, (7, 7), {})
    light = torch.rand(3, 112, 112)
    assert torch.equal(trace.picture(light, 0), shrunk_image(light, (7, 7)))
    assert traces(model) == []


def test_images_of_another_size_have_their_own_grid() -> None:
    model = VIT.build(dynamic_img_size=True)
    trace = trace_tokens(tokenzoo.build("tome", keep=0.5), model, images(model, size=(160, 192)))
    assert trace.grid == (10, 12)


def test_patches_that_are_no_grid_of_squares_are_refused() -> None:
    assert grid_of(49, (224, 224)) == (7, 7)
    assert grid_of(120, (160, 192)) == (10, 12)
    for tokens in (7, 48, 50, 63):
        with pytest.raises(BadArgumentError, match=f"{tokens} patch tokens .* 224 x 224"):
            grid_of(tokens, (224, 224))
