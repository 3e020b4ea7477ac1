"""`tokenzoo tune`: the recipe file that it writes is the winner that it names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.models import VIT
from tests.cli.calling import call, done
from tests.evaluation.lmms.checkpoints import save
from tokenzoo.cli import tune as command_file
from tokenzoo.evaluation.unlabelled import subject_of

IMAGES = torch.randn(8, 3, 112, 112, generator=torch.Generator().manual_seed(0))


def test_the_winner_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = VIT.build(depth=6, img_size=112)
    monkeypatch.setattr(
        command_file, "unlabelled", lambda *_, **__: subject_of(model, IMAGES, "vit", {})
    )
    out = tmp_path / "recipe.json"
    arguments = ("--images", tmp_path, "--target", 16, "--recipe", "tome,fastv", "--rounds", 1)
    result = done("tune", "vit", *arguments, "--out", out)
    assert "do not run here, or not at this target: fastv" in result.output
    method = tokenzoo.load(out)
    named = f"{method.name}{'*' * (method.name != 'tome')} with 16 tokens"
    assert named in " ".join(result.output.split())
    assert ("against the best control" in result.output) == (method.name == "tome")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Three prompts, next to a folder of eight photographs and the checkpoint of a small LLaVA."""
    (tmp_path / "images").mkdir()
    for index, photo in enumerate(hf.photos()):
        photo.save(tmp_path / "images" / f"{index}.png")
    save(tmp_path / "llava", hf.llava())
    file = tmp_path / "prompts.txt"
    file.write_text("what is this ?\nis it red ?\nwhere is the dog ?\n")
    return file


def test_prompts_for_a_vision_language_model(prompts: Path) -> None:
    """Of `fastv` the tokens that are left in the language model are named."""
    folder = prompts.parent
    out = folder / "recipe.json"
    arguments = ("--images", folder / "images", "--prompts", prompts, "--target", 16)
    more = ("--recipe", "fastv,fastervlm", "--rounds", 1, "--answer-tokens", 2, "--device", "cpu")
    result = done("tune", folder / "llava", *arguments, *more, "--out", out)
    said = " ".join(result.output.split())
    assert "likeness to the bare model on 8 prompts" in said
    assert "do not run here, or not at this target: downsample" in said
    assert f"{tokenzoo.load(out).name}" in said
    assert "with 16 tokens" in said


def test_options_that_would_do_nothing(prompts: Path) -> None:
    folder = prompts.parent
    asked = ("--prompts", prompts)
    for model, arguments, words in (
        (folder / "llava", (), "a vision-language model; a vision model is needed"),
        ("test_vit", asked, "they need a vision-language model of transformers"),
        ("test_vit", ("--device", "cpu"), "--device cpu without --prompts"),
        ("test_vit", ("--answer-tokens", 3), "--answer-tokens 3 without --prompts"),
        (folder / "llava", (*asked, "--size", 56), "--size 56 with --prompts"),
        (folder / "llava", (*asked, "--answer-tokens", 0), "answer_tokens=0"),
    ):
        result = call("tune", model, "--images", folder / "images", *arguments)
        assert result.exit_code == 2, result.output
        assert words in " ".join(result.stderr.split()), result.stderr
