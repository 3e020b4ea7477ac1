"""Gemma 3's pooling and its crops; what it has in common with others: tests/conformance/test_whole.py."""

from __future__ import annotations

import pytest
import torch

import tokenzoo
from tests.adapters.hf.models import IMAGE
from tests.adapters.hf.vlm import gemma3 as g3
from tests.adapters.hf.vlm.calls import FLOWER, WIDE, logits
from tests.adapters.models import gap
from tests.adapters.models import one_thread as one_thread
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import UnsupportedModelError
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import FeatureNorm


def test_crops_are_images() -> None:
    """Pan and scan: an image that is 3.8 times as wide as high is followed by 3 crops."""
    model, given = g3.gemma3(), g3.inputs(["see <image> there", "<image> ?"], [[WIDE], [FLOWER]])
    with tokenzoo.build("tome", keep=6).attach(model) as attached:
        logits(model, given)
        short = attached.shorten(dict(given))
    assert (given["input_ids"] == IMAGE).sum(1).tolist() == [4 * g3.TOKENS, g3.TOKENS]
    assert (short["input_ids"] == IMAGE).sum(1).tolist() == [4 * 6, 6]
    assert torch.equal(short["token_type_ids"] == 1, short["input_ids"] == IMAGE)


@pytest.mark.parametrize(("tokens", "group"), [(4, 4), (1, 8)])
def test_groups_of_other_sizes(tokens: int, group: int) -> None:
    """As in a checkpoint, where 4 x 4 patches are a token: a group that stays is that of the bare model."""
    model = g3.gemma3(mm_tokens_per_image=tokens)
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        bare = model.model.get_image_features(pixels, return_dict=True).pooler_output
        step = Step(Stage.BLOCK, Once(-1), SelectAssign(TopK(FeatureNorm()), Drop()), Identity())
        for keep in (tokens, max(1, tokens // 2)):
            zoo = tokenzoo.build(Recipe(step, keep=keep))
            with zoo.attach(model, trace=True) as attached:
                found = model.model.get_image_features(pixels, return_dict=True).pooler_output
                assert attached.adapter.group == group**2
                every = torch.arange(tokens).expand(2, -1)
                kept = every if keep == tokens else attached.record.keep
            rows = bare.gather(1, kept[..., None].expand(-1, -1, bare.shape[2]))
            assert gap(found, rows) <= 1e-5


@pytest.mark.parametrize("tokens", [9, 15])
def test_a_pooling_with_a_rest_is_refused(tokens: int) -> None:
    model = g3.gemma3(mm_tokens_per_image=tokens)
    with pytest.raises(
        UnsupportedModelError, match=f"mm_tokens_per_image={tokens} and 8 x 8 patches"
    ):
        tokenzoo.build("tome", keep=6).attach(model)
