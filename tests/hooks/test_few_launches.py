"""Few launches: how many operations one reduction sends to a device in addition to its kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tokenzoo
from tests.adapters.models import SIGLIP, VIT, Case, images
from tests.watching import Watch
from tokenzoo import Recipe, Stage, Step, evidence, tokens
from tokenzoo._core import precision
from tokenzoo.hooks import reduction
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Skip
from tokenzoo.scorers import ReceivedAttention

SELECTION = Step(Stage.BLOCK, Skip(), SelectAssign(TopK(ReceivedAttention()), Drop()), Identity())
# The most operations of one reduction, kernels and views not counted. Less is better: lower them.
MOST = {
    "evoprune": 57,
    "tome": 31,
    "selection": 29,
    "random": 47,
    "uniform": 67,
    "pool": 92,
}


def reductions(zoo: tokenzoo.Method, case: Case, monkeypatch: Any) -> list[Watch]:
    """Each reduction of a pass, watched."""
    model = case.build(depth=4, img_size=96)
    found: list[Watch] = []
    reduced = reduction.reduced

    def watched(*arguments: Any) -> Any:
        with Watch() as watch:
            result = reduced(*arguments)
        found.append(watch)
        return result

    with zoo.attach(model), torch.no_grad():
        monkeypatch.setattr(reduction, "reduced", watched)
        model(images(model))
    return found


@pytest.mark.parametrize("case", [VIT, SIGLIP], ids=lambda case: case.family)
@pytest.mark.parametrize("name", MOST)
def test_few_operations(name: str, case: Case, monkeypatch: Any) -> None:
    for module in (precision, tokens, evidence):  # sums are exact on the CPU alone
        monkeypatch.setattr(module, "exact", lambda values: False)
    recipe = Recipe(SELECTION, keep=25) if name == "selection" else name
    zoo = tokenzoo.build(recipe, keep=25)
    found = reductions(zoo, case, monkeypatch)
    assert found
    for watch in found:
        assert watch.launched.total() <= MOST[name], watch.launched.most_common()
