"""The examples of multimodal models as they are, with --tiny and no network; and their page."""

from __future__ import annotations

import importlib
import re
import runpy
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from sklearn.datasets import load_sample_image

import tokenzoo
from tests.adapters.hf.vlm import cosmos
from tokenzoo.errors import AttachError

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
QUICK = ("--new", "1", "--rounds", "0")
FLOWER, CHINA = (Image.fromarray(load_sample_image(f"{name}.jpg")) for name in ("flower", "china"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run an example with some arguments; its text comes back. Nothing can be downloaded."""

    def refuse(*args: object) -> None:
        raise OSError("a test may not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.syspath_prepend(str(EXAMPLES))  # as for `python examples/llava.py`

    def running(name: str, *arguments: str) -> str:
        monkeypatch.setattr("sys.argv", [str(EXAMPLES / name), "--tiny", *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return running


def removed(text: str) -> int:
    """How many tokens fewer than the whole prompt the language model reads."""
    found = re.search(r"reads a prompt of (\d+) tokens instead of (\d+)", text)
    assert found, text
    return int(found[2]) - int(found[1])


def test_fine_tuning_runs(run: Any) -> None:
    text = run("finetune_digits.py")
    rows = re.findall(
        r"^(all tokens|reduced|reduced, fine-tuned) +counts ([0-9.]+)", text, re.MULTILINE
    )
    assert [name for name, _ in rows] == ["all tokens", "reduced", "reduced, fine-tuned"]
    assert "at 32 tokens" in text
    assert "32 x 8" in text  # blocks


@pytest.mark.parametrize("name", ["llava.py", "llava_onevision_video.py", "qwen2_5_vl.py"])
def test_it_says_all_that_it_should(run: Any, name: str) -> None:
    text = run(name, "--new", "3", "--rounds", "2")
    assert "nonsense" in text
    said = dict(re.findall(r"^(all tokens|evoprune): (.+)$", text, re.MULTILINE))
    assert set(said) == {"all tokens", "evoprune"}
    # Words, and no prompt in front of them.
    assert all(len(answer.split()) == 3 for answer in said.values())
    assert "operations" in text
    assert "last pass" in text
    assert removed(text) > 0
    assert re.search(r"relative to all tokens: \d+\.\d\d \(.*2 rounds; all tokens again: \d", text)


@pytest.mark.parametrize(
    "family",
    [
        "internvl",
        "paligemma",
        "minicpm",
        "qwen3_vl",
        "gemma3",
        "smolvlm",
        "lfm2_vl",
        "glm4v",
        "molmo2",
        pytest.param(
            "cosmos3_edge",
            marks=pytest.mark.skipif(not cosmos.KNOWN, reason="transformers before 5.24"),
        ),
    ],
)
def test_each_family_has_an_example(run: Any, family: str) -> None:
    text = run("families.py", family, "--new", "3", "--rounds", "0")
    assert (
        len(re.findall(r"^(?:all tokens|evoprune|divprune): (?:\w+ ){2}\w+$", text, re.MULTILINE))
        == 2
    )
    assert removed(text) > 0


# A photograph of 640 x 427 is five crops of 64 tokens; of the grid of 16 x 16 ten lines are no letterbox.
CROPS = 64 + 10 * 17 - (5 * 16 + 2)
PICTURE = "140 x 84"
SHOWN: list[tuple[str, tuple[str, ...], int, tuple[str, ...]]] = [
    ("llava.py", ("--model", "llava-hf/llava-1.5-7b-hf"), 64 - 16, ()),
    ("llava.py", ("--model", "llava-hf/llava-v1.6-mistral-7b-hf"), CROPS, ()),
    ("llava.py", ("--model", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"), CROPS, ()),
    (
        "llava.py",  # inside the language model, not before it
        ("--image", PICTURE, "--keep", "0.25", "--recipe", "fastv"),
        0,
        ("fastv: .+", r"llm +16 from layer 2 on"),
    ),
    (
        "llava_onevision_video.py",  # 64 patches of a frame, pooled to 16
        ("--frames", "3", "--keep", "5", "--recipe", "random"),
        3 * 16 - 3 * 5,
        (),
    ),
    (
        "qwen2_5_vl.py",  # the photograph is 9 x 6 tokens here
        (),
        54 - 14,
        ("image +54 patch tokens.*", "features +14", "last pass +54, .*, 14"),
    ),
    *(
        (
            "qwen2_5_vl.py",  # slices of two frames
            ("--video", "--frames", "6", "--keep", "5", "--recipe", recipe),
            3 * 49 - 3 * 5,
            ("image +49 patch tokens.*",),
        )
        for recipe in ("random", "divprune")
    ),
    (
        "qwen2_5_vl.py",  # 15 tokens of the image, 49 of each of the 4 slices
        (
            *("--model", "Qwen/Qwen2-VL-2B-Instruct", "--image", PICTURE, "--video"),
            *("--recipe", "fastv", "--keep", "0.2"),
        ),
        0,
        ("image +15 patch tokens.*", "last prompts +43 visual tokens.*"),
    ),
]


@pytest.mark.parametrize(("name", "arguments", "fewer", "lines"), SHOWN)
def test_the_tokens_that_are_left(
    run: Any, tmp_path: Path, name: str, arguments: Any, fewer: int, lines: tuple[str, ...]
) -> None:
    FLOWER.resize((140, 84)).save(tmp_path / "picture.png")
    given = [str(tmp_path / "picture.png") if word == PICTURE else word for word in arguments]
    text = run(name, *given, *QUICK)
    assert removed(text) == fewer
    assert "relative to" not in text
    for line in lines:
        assert re.search(f"^{line}$", text, re.MULTILINE), line
    if name == "qwen2_5_vl.py":
        kind = "Qwen2VL" if "Qwen/Qwen2-VL-2B-Instruct" in arguments else "Qwen2_5_VL"
        assert f"{kind}ForConditionalGeneration" in text


def blocks(document: str) -> list[str]:
    """The Python of a document, block by block."""
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """From a module of the examples, what makes its model and processor; `from_pretrained` does it, too."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def found(module: str) -> Any:
        make = importlib.import_module(module).make
        places = {"AutoModelForImageTextToText": 0, "LlavaForConditionalGeneration": 0}
        for kind, place in {**places, "AutoProcessor": 1}.items():
            monkeypatch.setattr(
                getattr(transformers, kind),
                "from_pretrained",
                lambda name, place=place: make(name)[place],
            )
        return make

    return found


def test_the_page_about_multimodal_models_runs_as_it_is_printed(tiny: Any) -> None:
    onevision, _ = tiny("tiny_llava")("onevision")
    names: dict[str, Any] = {"image": FLOWER, "onevision": onevision}
    first, shortened, video, _ = blocks("docs/multimodal.md")
    exec(first, names)
    prompt = names["inputs"]["input_ids"].shape[1]
    assert names["out"].shape == (1, prompt + 40)
    assert len(names["answer"][0].split()) == 40
    exec(shortened, names)
    assert names["attached"].plan().visual == 16
    assert names["logits"].shape[1] == prompt - 64 + 16
    exec(video, names)
    assert names["attached"].model is onevision


def test_the_lines_of_the_readme_run(tiny: Any) -> None:
    tiny("tiny_llava")
    (lines,) = [block for block in blocks("README.md") if "LlavaForConditional" in block]
    prompts = ["<image> what is this", "<image> a flower"]
    names: dict[str, Any] = {"tokenzoo": tokenzoo, "images": [FLOWER, CHINA], "prompts": prompts}
    exec(lines, names)
    assert names["model"]._tokenzoo_attached.plan().visual == 16
    words = [len(answer.split()) for answer in names["answers"]]
    assert words == [names["out"].shape[1] - names["inputs"]["input_ids"].shape[1]] * 2


@pytest.mark.parametrize("name", ["Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"])
def test_the_lines_about_qwen_run(tiny: Any, name: str) -> None:
    tiny("tiny_qwen")
    (lines,) = [block for block in blocks("docs/multimodal.md") if "Qwen/" in block]
    names: dict[str, Any] = {"tokenzoo": tokenzoo, "transformers": transformers}
    names |= {"image": FLOWER, "second": CHINA.resize((200, 420))}
    exec(re.sub(r"Qwen/[\w.-]+", name, lines), names)
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
    model, processor = tiny("tiny_qwen")("Qwen/Qwen2.5-VL-7B-Instruct")
    frames = np.zeros((4, 112, 112, 3), dtype=np.uint8)
    text = "<start><image><end> and <start><video><end>"
    image = FLOWER.resize((140, 84))
    inputs = processor(text=[text], images=[image], videos=[frames], return_tensors="pt")
    attached = tokenzoo.build("random", keep=4).attach(model)
    model.generate(**inputs, max_new_tokens=1)
    (film,) = attached.passes
    assert (film.images, film.tokens, film.features) == ((0, 1), 16, 4)
    assert attached.counts == film.counts


def test_what_the_page_says_of_the_public_checkpoints() -> None:
    text = " ".join((ROOT / "docs" / "multimodal.md").read_text().split())
    evoprune = tokenzoo.build("evoprune", keep=0.25)
    assert evoprune.plan(tokens=576, depth=23, prefix=1).features == 144
    assert "576 patch tokens of the image down to 144" in text
    assert "432 tokens" in text
    frame, pooled = 27 * 27, 14 * 14
    assert f"{frame} tokens to {pooled}" in text
    assert f"between {pooled + 1} and {frame - 1} gives a longer prompt" in text
