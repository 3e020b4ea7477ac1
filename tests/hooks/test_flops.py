"""`build(..., flops=)`: the most tokens whose plan costs no more."""

from __future__ import annotations

from contextlib import suppress

import pytest

import tokenzoo
from tests.adapters.models import REG_GAP, SIGLIP, VIT, images
from tests.hooks.running import run
from tokenzoo.errors import BudgetError


@pytest.mark.parametrize(
    ("name", "tower"),
    [
        ("evoprune", {"tokens": 196, "depth": 12, "prefix": 1, "width": 384}),
        ("uniform", {"tokens": 49, "depth": 5, "prefix": 0, "width": 48, "hidden": 100}),
        ("tome", {"tokens": 1, "depth": 3}),
    ],
)
def test_flops_keep_as_many_as_they_pay_for(name: str, tower: dict[str, int]) -> None:
    plans = []
    for keep in range(1, tower["tokens"] + 1):
        with suppress(BudgetError):
            plans.append(tokenzoo.build(name, keep=keep).plan(**tower))
    for flops in (0.3, 0.5, 0.85, 1.0):
        affordable = [plan for plan in plans if plan.flops <= flops]
        zoo = tokenzoo.build(name, flops=flops)
        if affordable:
            assert zoo.plan(**tower) == affordable[-1]
        else:
            with pytest.raises(BudgetError, match=rf"flops={flops} is out of reach.* are left"):
                zoo.plan(**tower)
    assert affordable == plans


def test_flops_out_of_reach_name_the_cheapest() -> None:
    plans = [tokenzoo.build("evoprune", keep=keep).plan(196, 12) for keep in range(4, 197)]
    fewest = min(plan.flops for plan in plans)
    words = rf"196 patch tokens and 12 blocks: .* {fewest:.3f} of the operations"
    with pytest.raises(BudgetError, match=words):
        tokenzoo.build("evoprune", flops=0.1).plan(196, 12)
    assert tokenzoo.build("evoprune", flops=fewest).plan(196, 12).flops == fewest


def test_flops_on_a_model_are_its_plan_and_its_counts() -> None:
    for case in (VIT, SIGLIP, REG_GAP):
        model = case.build()
        with tokenzoo.build("evoprune", flops=0.6).attach(model) as attached:
            run(model, images(model))
            assert attached.counts == attached.plan().blocks
            assert 0.58 < attached.plan().flops <= 0.6
        more = tokenzoo.build("evoprune", keep=attached.plan().features + 1)
        with more.attach(model) as attached:
            assert attached.plan().flops > 0.6
    model = VIT.build(dynamic_img_size=True)
    with tokenzoo.build("tome", flops=0.7).attach(model) as attached:
        for size in ((224, 224), (160, 96)):
            run(model, images(model, size=size))
            assert attached.counts == attached.plan(size[0] * size[1] // 256).blocks


def test_flops_of_smaller_images() -> None:
    """Only counts that make a rectangle can be had: another is refused, and the nearest are named."""
    model = VIT.build()
    with tokenzoo.build("downsample", flops=0.3).attach(model) as attached:
        assert attached.plan().features == 77  # 11 x 7
        assert attached.plan().flops <= 0.3
        run(model, images(model))
        assert attached.counts == (77,) * 8
    with pytest.raises(BudgetError, match=r"resized to 116.* 112 and 117"):
        tokenzoo.build("downsample", flops=0.5).attach(model)
    for keep, fits in ((112, True), (117, False)):
        with tokenzoo.build("downsample", keep=keep).attach(model) as attached:
            assert (attached.plan().flops <= 0.5) == fits
