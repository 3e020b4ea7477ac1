"""timm's `features_only=True`: the model to attach to is the one inside."""

from __future__ import annotations

import pytest
import timm
import torch

import tokenzoo
from tests.adapters.models import one_thread as one_thread
from tokenzoo.errors import AttachError, UnsupportedModelError

SMALL = {"embed_dim": 48, "depth": 4, "num_heads": 4, "features_only": True}


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "beit_base_patch16_224"]
)
def test_the_wrapper_names_the_model_inside_which_works(name: str) -> None:
    net = timm.create_model(name, out_indices=(0, 2), img_size=112, **SMALL).eval()
    zoo, x = tokenzoo.build("tome", keep=0.5), torch.randn(1, 3, 112, 112)
    inside = type(net.model).__name__
    with pytest.raises(UnsupportedModelError, match=rf"maps off a {inside}.*net\.model, restore"):
        zoo.attach(net)
    with torch.no_grad():
        wanted = [tuple(part.shape) for part in net(x)]
        with zoo.attach(net.model, restore=True) as attached:
            assert [tuple(part.shape) for part in net(x)] == wanted
            assert attached.counts[-1] < attached.counts[0]
        with zoo.attach(net.model), pytest.raises(AttachError, match="restore=True"):
            net(x)


def test_a_model_inside_that_is_not_followed_says_why() -> None:
    net = timm.create_model("hiera_tiny_224", features_only=True, embed_dim=16, stages=(1, 1, 1, 1))
    with pytest.raises(UnsupportedModelError, match="Hiera: its attention works in windows"):
        tokenzoo.build("tome").attach(net)
