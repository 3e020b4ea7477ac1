"""examples/llava.py and examples/llava_onevision_video.py, as they are, with --tiny."""

from __future__ import annotations

import importlib
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image
from sklearn.datasets import load_sample_image

import tokenzoo
from tests.examples.running import EXAMPLES, ROOT, blocks, lengths
from tests.examples.running import run as run

NAMES = ("llava.py", "llava_onevision_video.py")


@pytest.mark.parametrize("name", NAMES)
def test_it_says_all_that_it_should(run, name):
    text = run(name, "--new", "3", "--rounds", "2")
    assert "nonsense" in text
    said = dict(re.findall(r"^(all tokens|evoprune): (.+)$", text, re.MULTILINE))
    assert set(said) == {"all tokens", "evoprune"}
    # Words, and no prompt in front of them.
    assert all(len(answer.split()) == 3 for answer in said.values())
    assert "operations" in text
    assert "last pass" in text
    short, whole = lengths(text)
    assert short < whole
    assert re.search(r"relative to all tokens: \d+\.\d\d \(.*2 rounds; all tokens again: \d", text)


@pytest.mark.parametrize(
    ("model", "whole", "short"),
    [
        ("llava-hf/llava-1.5-7b-hf", 64, 16),
        # A photograph of 640 x 427 is five crops of 64; of the grid of 16 x 16 ten lines are no letterbox.
        ("llava-hf/llava-v1.6-mistral-7b-hf", 64 + 10 * 17, 5 * 16 + 2),
        ("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", 64 + 10 * 17, 5 * 16 + 2),
    ],
)
def test_the_three_models(run, model, whole, short):
    text = run("llava.py", "--model", model, "--new", "1", "--rounds", "0")
    read, all_tokens = lengths(text)
    assert all_tokens - read == whole - short
    assert "relative to" not in text


def test_the_tokens_of_a_video(run):
    arguments = (
        "--frames",
        "3",
        "--keep",
        "5",
        "--new",
        "1",
        "--rounds",
        "0",
        "--recipe",
        "random",
    )
    read, whole = lengths(run("llava_onevision_video.py", *arguments))
    assert whole - read == 3 * 16 - 3 * 5  # 64 patches, pooled to 16


def test_a_recipe_by_name_a_share_and_a_picture_of_ones_own(run, tmp_path):
    picture = tmp_path / "picture.png"
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (90, 60, 3), dtype=np.uint8)).save(picture)
    arguments = ("--image", str(picture), "--keep", "0.25", "--recipe", "fastv", "--new", "2")
    text = run("llava.py", *arguments, "--rounds", "0")
    assert "fastv: " in text
    assert re.search(r"^llm +16 from layer 2 on$", text, re.MULTILINE)
    assert len(set(lengths(text))) == 1  # inside the language model, not before it


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `from_pretrained` gives: the tiny model and its processor."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    make = importlib.import_module("tiny_llava").make
    for place, kind in enumerate(("AutoModelForImageTextToText", "AutoProcessor")):
        loads = partial(lambda place, name: make(name)[place], place)
        monkeypatch.setattr(getattr(transformers, kind), "from_pretrained", loads)
    monkeypatch.setattr(
        transformers.LlavaForConditionalGeneration, "from_pretrained", lambda name: make(name)[0]
    )
    return make


def test_the_page_about_multimodal_models_runs_as_it_is_printed(tiny):
    onevision, _ = tiny("onevision")
    image = Image.fromarray(load_sample_image("flower.jpg"))
    names: dict[str, Any] = {"image": image, "onevision": onevision}
    first, shortened, video, _ = blocks("docs/multimodal.md")
    exec(first, names)
    assert names["out"].shape == (1, names["inputs"]["input_ids"].shape[1] + 40)
    assert len(names["answer"][0].split()) == 40
    exec(shortened, names)
    assert names["attached"].plan().visual == 16
    assert names["logits"].shape[1] == names["inputs"]["input_ids"].shape[1] - 64 + 16
    exec(video, names)
    assert names["attached"].model is onevision


def test_the_lines_of_the_readme_run(tiny):
    (lines,) = [block for block in blocks("README.md") if "LlavaForConditional" in block]
    images = [Image.fromarray(load_sample_image(name)) for name in ("flower.jpg", "china.jpg")]
    prompts = ["<image> what is this", "<image> a flower"]
    names: dict[str, Any] = {"tokenzoo": tokenzoo, "images": images, "prompts": prompts}
    exec(lines, names)
    assert names["model"]._tokenzoo_attached.plan().visual == 16
    words = [len(answer.split()) for answer in names["answers"]]
    assert words == [names["out"].shape[1] - names["inputs"]["input_ids"].shape[1]] * 2


def test_what_the_page_says_of_the_public_checkpoints():
    text = " ".join((ROOT / "docs" / "multimodal.md").read_text().split())
    evoprune = tokenzoo.build("evoprune", keep=0.25)
    assert evoprune.plan(tokens=576, depth=23, prefix=1).features == 144
    assert "576 patch tokens of the image down to 144" in text
    assert "432 tokens" in text
    frame, pooled = 27 * 27, 14 * 14
    assert f"{frame} tokens to {pooled}" in text
    assert f"between {pooled + 1} and {frame - 1} gives a longer prompt" in text
