"""What an engine makes of an attached model equals torch."""

from __future__ import annotations

import shutil

import pytest
import torch

import tokenzoo
from benchmarks.export_time import ENGINES
from tests.adapters.models import VIT, gap, images

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's converters


@pytest.mark.parametrize("engine", ENGINES)
def test_the_outputs_are_those_of_torch(engine: str, tmp_path) -> None:
    if engine == "AOTInductor" and shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    vit = VIT.build(depth=3, img_size=64)
    x, zoo = images(vit), tokenzoo.build("evoprune", keep=9)
    run = ENGINES[engine](zoo, vit, x, tmp_path)
    bare = vit(x)
    with torch.inference_mode(), zoo.attach(vit):
        expected = vit(x)
        assert gap(run(x), expected) <= 1e-4
    assert gap(bare, expected) > 1e-3
