"""Gemma 3's pooling and its crops; what it has in common with others: tests/conformance/test_whole.py."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import tokenzoo
from tests.adapters.hf.models import IMAGE, WORDS
from tests.adapters.hf.vlm import gemma3 as g3
from tests.adapters.hf.vlm.calls import CACHE, FLOWER, WIDE, cache_of, logits
from tests.adapters.models import gap
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


def test_types_of_the_whole_prompt_in_a_call_by_hand() -> None:
    """They are the caller's, as the mask is; new words see what is before them, whatever they say."""
    model, given = g3.gemma3(), g3.inputs(["see <image> there", "<image> ?"], [[WIDE], [FLOWER]])
    new = torch.tensor([[WORDS.index(word) for word in ("the", "red", "dog")]] * 2)
    whole = {name: F.pad(given[name], (0, 3)) for name in ("attention_mask", "token_type_ids")}
    whole["attention_mask"][:, -3:] = 1
    with tokenzoo.build("tome", keep=6).attach(model), torch.no_grad():
        one = model(**given, use_cache=True)
        said = [
            logits(model, {"input_ids": new, **call}, **{CACHE: copy.deepcopy(cache_of(one))})
            for call in (whole, {"attention_mask": whole["attention_mask"]})
        ]
    assert gap(*said) <= 1e-5


@pytest.mark.parametrize("tokens", [9, 15])
def test_a_pooling_with_a_rest_is_refused(tokens: int) -> None:
    model = g3.gemma3(mm_tokens_per_image=tokens)
    with pytest.raises(
        UnsupportedModelError, match=f"mm_tokens_per_image={tokens} and 8 x 8 patches"
    ):
        tokenzoo.build("tome", keep=6).attach(model)
