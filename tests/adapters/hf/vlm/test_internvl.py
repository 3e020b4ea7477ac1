"""InternVL's tower by itself; what it has in common with other models: tests/conformance/test_whole.py."""

from __future__ import annotations

import torch

import tokenzoo
from tests.adapters.hf.models import pixels
from tests.adapters.hf.vlm import internvl as iv
from tests.adapters.models import gap
from tests.adapters.models import one_thread as one_thread


def test_its_tower_alone_has_patches() -> None:
    """A group is a matter of the projector: without it each patch is a token."""
    tower = iv.internvl().model.vision_tower
    images = pixels(tower)
    with torch.no_grad():
        bare = tower(**images).last_hidden_state
        with tokenzoo.build("tome", keep=1.0).attach(tower):
            assert gap(tower(**images).last_hidden_state, bare) <= 1e-5
        with tokenzoo.build("tome", keep=20).attach(tower) as attached:
            short = tower(**images).last_hidden_state
    assert attached.counts == attached.plan().blocks
    assert short.shape[1:] == (1 + 20, bare.shape[2])
