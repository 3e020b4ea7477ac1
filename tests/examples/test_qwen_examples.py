"""examples/qwen2_5_vl.py, as it is, with --tiny; and what docs/multimodal.md says of Qwen."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from sklearn.datasets import load_sample_image

import tokenzoo
from tests.examples.running import EXAMPLES, blocks, lengths
from tests.examples.running import run as run
from tokenzoo.errors import AttachError

NAME = "qwen2_5_vl.py"
QUICK = ("--new", "1", "--rounds", "0")


def test_it_says_all_that_it_should(run: Any) -> None:
    text = run(NAME, "--new", "3", "--rounds", "2")
    assert "nonsense" in text
    said = dict(re.findall(r"^(all tokens|evoprune): (.+)$", text, re.MULTILINE))
    assert set(said) == {"all tokens", "evoprune"}
    # Words, and no prompt in front of them.
    assert all(len(answer.split()) == 3 for answer in said.values())
    assert "Qwen2_5_VLForConditionalGeneration" in text
    # A photograph of 640 x 427 is 9 x 6 tokens here.
    assert re.search(r"^image +54 patch tokens", text, re.MULTILINE)
    assert re.search(r"^features +14$", text, re.MULTILINE)
    assert re.search(r"^last pass +54, .*, 14$", text, re.MULTILINE)
    short, whole = lengths(text)
    assert whole - short == 54 - 14
    assert re.search(r"relative to all tokens: \d+\.\d\d \(.*2 rounds; all tokens again: \d", text)


@pytest.mark.parametrize("recipe", ["random", "divprune"])
def test_a_video_is_slices_of_two_frames(run: Any, recipe: str) -> None:
    arguments = ("--video", "--frames", "6", "--keep", "5", "--recipe", recipe)
    text = run(NAME, *arguments, *QUICK)
    short, whole = lengths(text)
    assert whole - short == 3 * 49 - 3 * 5
    assert re.search(r"^image +49 patch tokens", text, re.MULTILINE)
    assert "relative to" not in text


def test_an_image_and_a_video_with_a_recipe_in_the_language_model(run: Any, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 255, (84, 140, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    arguments = ("--image", str(picture), "--video", "--recipe", "fastv", "--keep", "0.2")
    text = run(NAME, "--model", "Qwen/Qwen2-VL-2B-Instruct", *arguments, *QUICK)
    assert "Qwen2VLForConditionalGeneration" in text
    assert re.search(r"^image +15 patch tokens", text, re.MULTILINE)
    assert len(set(lengths(text))) == 1  # inside the language model, not before it
    # 15 tokens of the image, 49 of each of the 4 slices.
    assert re.search(r"^last prompts +43 visual tokens", text, re.MULTILINE)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tiny model and its processor by name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("tiny_qwen").make


@pytest.mark.parametrize("name", ["Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"])
def test_the_lines_of_the_page_run(monkeypatch: pytest.MonkeyPatch, tiny: Any, name: str) -> None:
    model, processor = tiny(name)
    for kind, made in (("AutoModelForImageTextToText", model), ("AutoProcessor", processor)):
        monkeypatch.setattr(
            getattr(transformers, kind), "from_pretrained", lambda _, made=made: made
        )
    image, second = (
        Image.fromarray(load_sample_image(photo)) for photo in ("flower.jpg", "china.jpg")
    )
    second = second.resize((200, 420))
    (lines,) = [block for block in blocks("docs/multimodal.md") if "Qwen/" in block]
    names: dict[str, Any] = {"tokenzoo": tokenzoo, "transformers": transformers}
    names |= {"image": image, "second": second}
    exec(lines, names)
    assert names["sizes"] == [((0,), 54, 14), ((1,), 55, 14)]
    prompt = names["inputs"]["input_ids"]
    assert torch.equal(names["out"][:, : prompt.shape[1]], prompt)
    assert names["out"].shape[1] == prompt.shape[1] + 40
    attached = names["attached"]
    assert attached.plan(54).features == 14
    assert "54 patch tokens" in attached.summary(54)
    for one in attached.passes:
        assert one.counts == attached.plan(one.tokens).blocks
    with pytest.raises(AttachError, match=r"attached\.passes"):
        _ = attached.counts


def test_the_passes_of_a_video_are_the_last(tiny: Any) -> None:
    model, processor = tiny("Qwen/Qwen2.5-VL-7B-Instruct")
    image = Image.fromarray(load_sample_image("flower.jpg")).resize((140, 84))
    frames = np.zeros((4, 112, 112, 3), dtype=np.uint8)
    text = "<start><image><end> and <start><video><end>"
    inputs = processor(text=[text], images=[image], videos=[frames], return_tensors="pt")
    attached = tokenzoo.build("random", keep=4).attach(model)
    model.generate(**inputs, max_new_tokens=1)
    (film,) = attached.passes
    assert (film.images, film.tokens, film.features) == ((0, 1), 16, 4)
    assert attached.counts == film.counts
