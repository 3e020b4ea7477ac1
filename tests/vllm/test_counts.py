"""Placeholders that are planned before an image is encoded; vLLM is not needed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenzoo_adapters.hf.vlm.placeholders import VisualSpan
from tokenzoo_adapters.vllm.counts import check_counts, check_model, image_spans, planner, shortened
from tokenzoo_adapters.vllm.recipe import ServedRecipe

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm import qwen
from tokenzoo.errors import AttachError, BadArgumentError

MODELS = {
    "llava": (hf.llava, hf.processor),
    "llava_next": (hf.llava_next, hf.processor),
    "qwen2_vl": (qwen.qwen2_vl, lambda model: qwen.processor("qwen2_vl")),
    "qwen2_5_vl": (qwen.qwen2_5_vl, lambda model: qwen.processor("qwen2_5_vl")),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("keep", [0.3, 20])
def test_a_model_without_weights_plans_as_an_attached_one_shortens(kind: str, keep: Any) -> None:
    make, processor = MODELS[kind]
    model = make()
    _, flower, tall, *_ = hf.photos()
    token = model.config.image_token_id
    method = tokenzoo.build("evoprune", keep=keep)
    before = model.config.to_dict()
    planned = planner(ServedRecipe(method, ""), model.config)
    assert model.config.to_dict() == before
    assert model.config.vision_config._attn_implementation == "sdpa"
    attached = method.attach(model)
    for image in (flower, tall):
        inputs = processor(model)(text="see <image> .", images=[image], return_tensors="pt")
        (span,) = image_spans(planned, inputs)
        ids = inputs["input_ids"][0]
        (short,) = shortened(ids, [len(ids)], [span])
        wanted = attached.shorten(inputs)["input_ids"][0]
        assert short.tolist() == wanted.tolist()
        assert int((short == token).sum()) == span.short < span.full


def test_placeholders_of_several_images() -> None:
    ids = torch.tensor([7, 5, 5, 5, 8, 5, 5, 9, 5, 5])
    found = shortened(ids, [5, 5], [VisualSpan(3, 2), VisualSpan(4, 1)])
    assert [one.tolist() for one in found] == [[7, 5, 5, 8], [5, 9]]


@pytest.mark.parametrize(
    ("spans", "words"),
    [
        ([VisualSpan(4, 2)], "image 0: the processor writes 3 placeholders, .* starts from 4"),
        ([VisualSpan(3, 4)], "image 0: 4 tokens are planned, more than its 3 placeholders"),
        ([VisualSpan(3, 2)] * 2, "writes 1 images into the prompt, and 2 are planned"),
    ],
)
def test_a_prompt_that_does_not_fit_the_plan_is_refused(spans: Any, words: str) -> None:
    with pytest.raises(BadArgumentError, match=words):
        shortened(torch.tensor([7, 5, 5, 5, 8]), [5], spans)


def test_other_tokens_than_planned_are_refused() -> None:
    check_counts([4, 4], [VisualSpan(9, 4)] * 2)
    with pytest.raises(AttachError, match=r"have \[4, 9\] tokens, and \[4, 4\] are planned"):
        check_counts([4, 9], [VisualSpan(9, 4)] * 2)


def test_a_model_that_vllm_does_not_run_as_transformers_does_is_refused() -> None:
    method = tokenzoo.build("evoprune", keep=0.5)
    with pytest.raises(AttachError, match=r"Qwen3VLModel.*deepstack.*not pass them on"):
        planner(ServedRecipe(method, ""), qwen.qwen3_vl().config)
    with pytest.raises(AttachError, match=r"Qwen3_5Model: its positions .* were not tried"):
        planner(ServedRecipe(method, ""), qwen.qwen3_5().config)
    tower = method.attach(hf.tower("clip"))
    with pytest.raises(AttachError, match="no vision-language model"):
        check_model(tower)
    attached = method.attach(hf.llava())
    attached.adapter = replace(attached.adapter, spec=replace(attached.adapter.spec, modalities=()))
    with pytest.raises(AttachError, match="reads no images"):
        check_model(attached)
