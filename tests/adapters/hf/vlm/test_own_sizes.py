"""A copy of the sizes of images: the caller's own stay, and a tower that is followed needs none."""

from __future__ import annotations

import pytest
import torch
from tokenzoo_adapters.hf.vlm.models.molmo2 import MOLMO2
from tokenzoo_adapters.hf.vlm.own_sizes import own_sizes

import tokenzoo
from tests.adapters.hf.models import photos
from tests.adapters.hf.vlm import molmo2
from tokenzoo.errors import UnsupportedModelError


@pytest.mark.parametrize("by_name", [False, True])
def test_the_grids_of_the_caller_stay(by_name):
    pytest.importorskip("transformers", minversion="5.24")
    model = molmo2.molmo2()
    given = molmo2.inputs("what is the <image> ?", [photos()[1]])
    tokenzoo.build("divprune", keep=4).attach(model)
    names = ("pixel_values", "image_token_pooling", "image_grids")
    before = given["image_grids"].clone()
    call = {name: given[name] for name in names}
    features = model.model.get_image_features
    with torch.no_grad():
        out = features(**call) if by_name else features(*call.values())
    assert torch.equal(given["image_grids"], before)
    assert [len(rows) for rows in out.pooler_output] == [2 * 4]  # the whole image, and its crops


def test_a_tower_that_is_followed_is_refused():
    with pytest.raises(
        UnsupportedModelError, match=r"own_sizes needs a tower that is not followed"
    ):
        own_sizes(MOLMO2, None, None)
