"""Prompts about images without labels: what is compared, what chooses, and `tune` with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm import internvl, paligemma, qwen
from tests.evaluation.lmms.checkpoints import CHAT, save
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation import Job, Subject, candidates
from tokenzoo.evaluation.answers import NONE, answer, forced, prompted, subject_of_prompts
from tokenzoo.evaluation.largest_share import SLACK
from tokenzoo.evaluation.prompts import Prompt
from tokenzoo.evaluation.sweep import attach
from tokenzoo.evaluation.target import Target
from tokenzoo.evaluation.tune import tune
from tokenzoo.evaluation.vlm import VisionLanguageModel, load

TEXTS = ("what is this ?", "describe the big red flower", "is it yellow ?")
LONGEST = 4


def known(kind: str) -> VisionLanguageModel:
    """A small model with its processor; that of PaliGemma has no chat template."""
    if kind == "paligemma":
        return VisionLanguageModel(paligemma.paligemma(), paligemma.processor("left"))
    if kind == "internvl":
        return VisionLanguageModel(internvl.internvl(), internvl.processor("left"))
    model = hf.llava() if kind == "llava" else qwen.qwen2_5_vl()
    processor = hf.processor(model) if kind == "llava" else qwen.processor("qwen2_5_vl")
    processor.chat_template = CHAT
    return VisionLanguageModel(model, processor)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with eight photographs of several sizes."""
    folder = tmp_path_factory.mktemp("images")
    for index, photo in enumerate(hf.photos()):
        photo.save(folder / f"{index}.png")
    return folder


def subject(kind: str, images: Path, prompts: int = 8) -> Subject:
    model = known(kind)
    asked = [Prompt(images / f"{i}.png", TEXTS[i % len(TEXTS)]) for i in range(prompts)]
    given = [model.inputs(one) for one in asked]
    return subject_of_prompts(model.model, given, kind, {}, answer_tokens=LONGEST)


@pytest.mark.parametrize(
    ("kind", "before", "between"),
    [("llava", "<s> user : ", ""), ("qwen2_5_vl", "<s> user : ", ""), ("paligemma", "", "<s> ")],
)
def test_the_image_comes_before_the_prompt(
    kind: str, before: str, between: str, images: Path
) -> None:
    model = known(kind)
    given = model.inputs(Prompt(images / "1.png", TEXTS[0]))
    text = model.processor.batch_decode(given["input_ids"])[0]
    words = [word for word in text.split() if word != "<image>"]
    assert " ".join(words).startswith(f"{before}{between}what is this ?")
    assert text.startswith(f"{before}<image>")
    assert "labels" not in given


def test_pixels_are_of_the_models_dtype(images: Path) -> None:
    model = known("llava")
    model.model.to(torch.bfloat16)
    given = model.inputs(Prompt(images / "1.png", TEXTS[0]))
    assert (given["pixel_values"].dtype, given["input_ids"].dtype) == (torch.bfloat16, torch.int64)


def test_a_prompt_that_cannot_be_written(tmp_path: Path) -> None:
    model = known("qwen2_5_vl")
    Image.new("RGB", (900, 3)).save(tmp_path / "narrow.png")
    (tmp_path / "text.png").write_text("no image")
    for name, text, words in (
        ("narrow.png", "see <image> ?", "has the placeholder <image>"),
        ("narrow.png", "what ?", r"takes no prompt about .*narrow\.png"),
        ("text.png", "what ?", r"text\.png cannot be read as an image"),
    ):
        with pytest.raises(BadArgumentError, match=words):
            model.inputs(Prompt(tmp_path / name, text))


@pytest.mark.parametrize(
    ("kind", "frames", "left"), [("llava", 4, 12), ("internvl", 4, 12), ("qwen2_5_vl", None, 6)]
)
def test_frames_are_one_video(
    kind: str, frames: int | None, left: int, images: Path, tmp_path: Path
) -> None:
    """As images of a prompt, as a video whose frames are images to the model, and as two slices."""
    for i in range(4):
        Image.open(images / f"{i}.png").resize((56, 56)).save(tmp_path / f"{i}.png")
    model, film = known(kind), tuple(tmp_path / f"{i}.png" for i in range(4))
    asked = [Prompt(film, TEXTS[0]), Prompt(film[::-1], TEXTS[1])]
    assert model.frames(asked) == frames
    given = [model.inputs(one) for one in asked]
    made = subject_of_prompts(model.model, given, kind, {}, answer_tokens=2)
    made = replace(made, videos=True, frames=frames)
    with attach(Job("prunevid", 3), made) as attached, torch.inference_mode():
        gone = given[0]["input_ids"].shape[1] - attached.shorten(given[0])["input_ids"].shape[1]
        found = made.score(made.model, range(2), "")
    config = model.model.config
    token = config.image_token_id if frames else config.video_token_id
    assert int((given[0]["input_ids"] == token).sum()) - gone == left
    assert bool((found.scores["likeness"] < 0.999).all())


def test_videos_of_images_have_as_many_frames(images: Path) -> None:
    asked = [Prompt((images / "0.png",) * count, TEXTS[0]) for count in (2, 3)]
    with pytest.raises(BadArgumentError, match="about 2, 3 frames"):
        known("llava").frames(asked)
    assert known("qwen2_5_vl").frames(asked) is None


LED = [
    (kind, recipe)
    for kind in ("llava", "qwen2_5_vl", "paligemma")
    for recipe in ("bare", "evoprune", "cdpruner", "fastv")
    if (kind, recipe) != ("paligemma", "fastv")  # it is not reduced in its language model
]


@pytest.mark.parametrize(("kind", "recipe"), LED)
def test_an_answer_is_led_and_does_not_choose(kind: str, recipe: str, images: Path) -> None:
    """Led through its own answer, a model says what it says alone; another answer changes no choice."""
    model = known(kind)
    given = model.inputs(Prompt(images / "0.png", TEXTS[0]))
    method = None if recipe == "bare" else tokenzoo.build(recipe, keep=0.25)
    if method is not None:
        method.attach(model.model)
    with torch.inference_mode():
        words, logits = answer(model.model, given, LONGEST)
        led = forced(model.model, given, words)
        other = forced(model.model, given, words.flip(0) + 1)
    assert words.shape == (LONGEST,)
    assert torch.equal(led, logits)
    assert torch.equal(other[0], logits[0])
    assert not torch.equal(other[1], logits[1])


def test_likeness_of_the_bare_model_and_of_less(images: Path) -> None:
    asked = subject("llava", images)
    with torch.inference_mode():
        whole = asked.score(asked.model, range(8), "")
        with tokenzoo.build("random", keep=4).attach(asked.model):
            less = asked.score(asked.model, range(2, 5), "")
    assert torch.equal(whole.scores["likeness"], torch.ones(8).double())
    assert less.scores["likeness"].shape == (3,)
    assert bool((less.scores["likeness"] < 0.999).all())
    assert less.answers is not None
    assert whole.answers is not None
    assert not torch.equal(less.answers, whole.answers[2:5])


def test_an_answer_that_ends_early(images: Path) -> None:
    """What comes after the end of the bare model's answer is not compared."""
    model = known("llava")
    given = [model.inputs(Prompt(images / f"{i}.png", TEXTS[0])) for i in range(2)]
    with torch.inference_mode():
        words, _ = answer(model.model, given[0], LONGEST)
        model.model.generation_config.eos_token_id = int(words[0])
        made = subject_of_prompts(model.model, given, "llava", {}, answer_tokens=LONGEST)
        found = made.score(model.model, range(2), "")
    assert found.answers is not None
    assert found.answers[0].tolist() == [int(words[0]), *[NONE] * (LONGEST - 1)]
    assert torch.equal(found.scores["likeness"], torch.ones(2).double())


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_tune_at_a_count(kind: str, images: Path, tmp_path: Path) -> None:
    asked = subject(kind, images)
    found = tune(asked, Target("tokens", 3), ["tome", "fastv", "fastervlm", "downsample"], rounds=1)
    names = {one.job.recipe for one in found.finalists}
    refused = {"llava": {"downsample"}, "qwen2_5_vl": {"downsample", "fastervlm"}}[kind]
    assert set(found.refused) == refused
    assert {"tome", "fastv", "random", "uniform", "pool"} <= names
    assert all(one.tokens == 3 for one in found.finalists)
    assert all(len(one.agreement) == 8 for one in found.finalists)
    found.winner.job.method().save(tmp_path / "recipe.json")
    with tokenzoo.load(tmp_path / "recipe.json").attach(asked.model):
        assert asked.call(asked.model)


def test_tune_at_a_time_searches_for_the_tokens(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operations of the tower say nothing of `fastv`, which has a time all the same."""

    def relative_time(subject: Subject, twin: Any, rounds: int) -> list[float]:
        del twin, rounds
        plan = subject.model._tokenzoo_attached.plan(64)
        return [0.3 + 0.7 * (plan.llm or plan.visual) / 64] * 3

    monkeypatch.setattr(candidates, "relative_time", relative_time)
    found = tune(subject("llava", images), Target("time", 0.6), ["evoprune", "fastv"], rounds=1)
    tried = [*found.finalists, *found.dropped]
    assert {one.job.recipe for one in tried} == {"evoprune", "fastv", "random", "uniform", "pool"}
    for one in tried:
        assert isinstance(one.job.keep, float)
        assert 0.9 * 0.6 < one.time[0] <= 0.6 * SLACK


def test_a_checkpoint_with_a_file_of_prompts(images: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "llava", hf.llava())
    (tmp_path / "p.txt").write_text("\n".join(TEXTS))
    made = prompted(folder, images, tmp_path / "p.txt", answer_tokens=2, device="cpu")
    assert (made.samples, made.facts["prompts"], made.facts["answer"]) == (8, "p.txt", 2)
    with torch.inference_mode():
        found = made.score(made.model, range(8), "")
        again = subject("llava", images).score(hf.llava(), range(8), "")
    assert found.answers is not None
    assert again.answers is not None
    assert torch.equal(found.answers, again.answers[:, :2])
    with pytest.raises(BadArgumentError, match=r"7 prompts .* too few"):
        prompted(folder, images, tmp_path / "p.txt", count=7, device="cpu")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("CLIPVisionConfig", "a clip_vision_model, which does not read images and text"),
        ("LlamaConfig", "a llama, which does not read"),
        ("LlavaConfig", "cannot load"),  # there are no weights
        (None, "needs? a vision-language model of transformers"),
    ],
)
def test_models_that_take_no_prompts(config: str | None, words: str, tmp_path: Path) -> None:
    if config is not None:
        getattr(transformers, config)().save_pretrained(tmp_path)
    with pytest.raises(BadArgumentError, match=words):
        load(str(tmp_path) if config else "vit_tiny_patch16_224")
