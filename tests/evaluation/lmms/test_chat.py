"""A checkpoint's answers to conversations, with a recipe and bare; lmms-eval is not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm import qwen
from tests.evaluation.lmms.checkpoints import conversation, save
from tokenzoo.errors import BadArgumentError, MissingEvidenceError, UnsupportedModelError
from tokenzoo.evaluation.lmms.arguments import parse
from tokenzoo.evaluation.lmms.chat import ChatModel, load

GREEDY: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
QUESTIONS = ("what is this ?", "describe the big red flower", "a cat", "different ?")
IMAGES = (1, 0, 1, 2)  # of each question
PROMPTS = (7, 8, 5, 5)  # tokens, without images


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("llava"), hf.llava())


def loaded(pretrained: str, **given: Any) -> ChatModel:
    return load(parse({"pretrained": pretrained, "device": "cpu", **given}))


def conversations() -> list[list[dict[str, Any]]]:
    photos = hf.photos()
    return [
        conversation(text, *photos[:images]) for text, images in zip(QUESTIONS, IMAGES, strict=True)
    ]


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize(
    ("recipe", "visual", "last"), [("evoprune", 16, 16), ("fastv", 64, 16), ("none", 64, 64)]
)
def test_answers_and_counts(llava: str, recipe: str, visual: int, last: int, beams: int) -> None:
    """A batch of prompts of different lengths is answered as each of them alone is."""
    keep = {} if recipe == "none" else {"keep": 16}
    model = loaded(llava, recipe=recipe, **keep)
    answers = model.answer(conversations(), {**GREEDY, "num_beams": beams})
    for one, words, n in zip(answers, PROMPTS, IMAGES, strict=True):
        assert (one.whole, one.visual, one.last) == (64 * n, visual * n, last * n)
        assert (one.prompt, one.generated) == (words + visual * n, 5)
    bare = hf.llava()
    if keep:
        tokenzoo.build(recipe, **keep).attach(bare)
    photos = hf.photos()
    for text, images, answer in zip(QUESTIONS, IMAGES, answers, strict=True):
        inputs = hf.inputs(bare, "user : " + "<image> " * images + text, [photos[:images]])
        with torch.no_grad():
            out = bare.generate(**inputs, **GREEDY, num_beams=beams)
        (alone,) = hf.processor(bare).batch_decode(out[:, inputs["input_ids"].shape[1] :])
        assert answer.text == alone


def test_an_answer_ends_where_the_model_ends_it(llava: str) -> None:
    model = loaded(llava, recipe="none")
    (first, *_), ids = model.answer(conversations(), GREEDY), model.processor.tokenizer
    word = first.text.split()[0]
    model.model.generation_config.eos_token_id = [ids.convert_tokens_to_ids(word)]
    answers = model.answer(conversations(), GREEDY)
    assert (answers[0].text, answers[0].generated) == (word, 1)
    assert max(one.generated for one in answers) == 5


def test_dtype_and_attention(llava: str) -> None:
    given = {"dtype": "bfloat16", "attn_implementation": "eager"}
    model = loaded(llava, recipe="divprune", keep=8, **given)
    assert model.model.dtype == torch.bfloat16
    assert model.model.config._attn_implementation == "eager"
    assert [one.visual for one in model.answer(conversations(), GREEDY)] == [8, 0, 8, 16]


def test_the_limits_of_an_image(tmp_path: Path, llava: str) -> None:
    model = qwen.qwen2_5_vl()
    pretrained = save(tmp_path / "qwen", model, qwen.processor("qwen2_5_vl"))
    limited = loaded(pretrained, recipe="evoprune", keep=0.5, max_pixels=8 * qwen.GROUP**2)
    (answer,) = limited.answer([conversation("this", hf.photos()[0])], GREEDY)
    assert (answer.whole, answer.visual) == (6, 3)
    with pytest.raises(BadArgumentError, match="max_pixels=9: CLIPImageProcessor has no such"):
        loaded(llava, recipe="none", max_pixels=9)


@pytest.mark.parametrize(("frames", "seen"), [({}, 12), ({"frames": 4}, 4)])
def test_frames_of_a_video(frames: dict[str, int], seen: int, tmp_path: Path) -> None:
    pretrained = save(tmp_path, hf.llava_onevision())
    model = loaded(pretrained, recipe="divprune", keep=9, **frames)
    video = {"type": "video", "video": hf.video(12)}
    messages = [{"role": "user", "content": [video, {"type": "text", "text": "this"}]}]
    (answer,) = model.answer([messages], GREEDY)
    assert (answer.whole, answer.visual) == (16 * seen + 1, 9 * seen + 1)  # and a newline


@pytest.mark.parametrize(
    ("config", "recipe", "error", "words"),
    [
        ("VipLlavaConfig", "evoprune", UnsupportedModelError, "VipLlavaFor"),
        ("LlamaConfig", "evoprune", BadArgumentError, "cannot load it as a model that reads"),
        ("LlavaOnevisionConfig", "fastervlm", MissingEvidenceError, "cls_attention"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_its_weights_are_loaded(
    config: str, recipe: str, error: type[Exception], words: str, tmp_path: Path
) -> None:
    getattr(transformers, config)().save_pretrained(tmp_path)  # there are no weights
    with pytest.raises(error, match=words):
        loaded(str(tmp_path), recipe=recipe)


def test_a_checkpoint_that_is_not_there_or_writes_no_conversations(tmp_path: Path) -> None:
    with pytest.raises(BadArgumentError, match=r"pretrained='.*none'.*cannot load"):
        loaded(str(tmp_path / "none"), recipe="evoprune")
    model = hf.llava()
    model.save_pretrained(tmp_path)
    hf.processor(model).save_pretrained(tmp_path)
    with pytest.raises(BadArgumentError, match="no chat template"):
        loaded(str(tmp_path), recipe="evoprune")
