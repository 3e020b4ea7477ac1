"""Conversations of language models that read every column before a token, padding too."""

from __future__ import annotations

import pytest
import torch

import tokenzoo
from tests.adapters.hf.vlm.calls import CACHE, FLOWER, WIDE, Batch, cache_of
from tests.conformance.chats import moved, said, whole
from tokenzoo.errors import AttachError

FIRST = Batch(("see <image>", "the <image>"), ((FLOWER,), (FLOWER,)))
SECOND = Batch(("and <image> ?", "or <image> ?"), ((WIDE,), (FLOWER.resize((56, 56)),)))


@pytest.mark.parametrize("kind", ["lfm2_vl", "qwen3_5"])
def test_padding_inside_a_conversation_is_refused(kind: str) -> None:
    """Convolutions and linear attention would read it: the second images lose unequally many tokens."""
    model = whole(kind)
    first, second = FIRST.given(model), SECOND.given(model)
    with tokenzoo.build("tome", keep=4).attach(model):
        one = said(model, first)
        tokens = {
            name: first[name]
            for name in ("input_ids", "attention_mask", "mm_token_type_ids")
            if name in first
        }
        given = moved(tokens, torch.cat([one.sequences[:, -3:], second["input_ids"]], 1))
        last = second["input_ids"].shape[1]
        for name in tokens:
            given[name][:, -last:] = second[name]
        with pytest.raises(AttachError, match="Continue the rows one by one"):
            said(model, {**second, **given}, **{CACHE: cache_of(one)})
