"""`tokenzoo train`: the files that it writes, and an interruption."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenzoo
from tests.cli.calling import call, done
from tests.cli.calling import small_vit as small_vit
from tokenzoo.evaluation.training import DigitsTask
from tokenzoo.tools import digits

pytestmark = [
    pytest.mark.usefixtures("small_vit"),
    pytest.mark.filterwarnings("ignore::tokenzoo.errors.UntrainedWarning"),
]
SHORT = ("--keep", 16, "--steps", 4, "--every", 2, "--batch", 3, "--samples", 4)


def test_a_recipe_and_its_weights_are_written_and_work(tmp_path: Path) -> None:
    out, curve = tmp_path / "recipe.json", tmp_path / "curve.json"
    result = done("train", "sit", "--out", out, "--curve", curve, *SHORT)
    names = {"recipe.json", "recipe.safetensors", "curve.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    for word in ("bare", "random", "pool", "untrained", "trained", "recipe.safetensors"):
        assert word in result.stdout
    content = json.loads(curve.read_text())
    assert [*content["scores"]] == ["bare", "random", "pool", "untrained", "trained"]
    assert len(content["curve"]) == 4
    model = digits.load_digits_vit()
    loaded = tokenzoo.load(out)
    assert loaded.recipe == tokenzoo.build("sit", keep=16).recipe
    with loaded.attach(model):
        assert DigitsTask(3, 4).score(model) == content["scores"]["trained"]


def test_a_recipe_without_parts_tunes_the_model(tmp_path: Path) -> None:
    out = tmp_path / "recipe.json"
    done("train", "evit", "--out", out, "--tune-model", "--anneal", 0.5, *SHORT)
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.json", "recipe.model.safetensors"}


def test_ctrl_c_writes_a_checkpoint_and_resuming_ends_at_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / name / "recipe.json" for name in ("whole", "halves")]
    for file in files:
        file.parent.mkdir()
    done("train", "dynamicvit", "--out", files[0], *SHORT)
    batch = DigitsTask.batch

    def stopping(self: Any, step: int) -> Any:
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return batch(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(DigitsTask, "batch", stopping)
        stopped = call("train", "dynamicvit", "--out", files[1], *SHORT)
    assert stopped.exit_code == 130
    assert "after 2 of 4 steps" in stopped.stderr
    assert "--resume" in stopped.stderr
    again = call("train", "dynamicvit", "--out", files[1], *SHORT)
    assert again.exit_code == 2
    assert "pass --resume" in again.stderr
    done("train", "dynamicvit", "--out", files[1], "--resume", *SHORT)
    one, other = (file.with_suffix(".safetensors").read_bytes() for file in files)
    assert one == other
    assert len([*files[1].parent.iterdir()]) == 2  # the checkpoint is gone


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("evit",), "--tune-model"),
        (("sit", "--resume"), "no checkpoint"),
        (("sit", "--model", "vit_tiny_patch16_224"), "only digits-vit"),
        (("sit", "--data", "photos"), "name a model"),
        (("sit", "--data", "nowhere", "--model", "vit_tiny_patch16_224"), "nowhere"),
        (("sit", "--steps", "0"), "steps=0"),
        (("sit", "--batch", "0"), "batch=0"),
        (("sit", "--anneal", "0.5", "--samples", "2"), "one number of tokens"),
        (("dynamicvi",), "dynamicvit"),
        (("sit", "--keep", "0"), "keep"),
        (("sit", "--out", "a.txt"), ".json"),
    ],
)
def test_refusals(arguments: tuple[str, ...], word: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("train", *arguments)
    assert result.exit_code == 2, result.output
    assert word in result.stderr
    assert not [*tmp_path.iterdir()]


def test_the_shipped_model_is_not_changed(tmp_path: Path) -> None:
    before = {name: p.clone() for name, p in digits.load_digits_vit().state_dict().items()}
    done("train", "patchmerger", "--out", tmp_path / "recipe.json", *SHORT)
    after = digits.load_digits_vit().state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
