"""`tokenzoo tune`: the recipe file that it writes is the winner that it names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tokenzoo
from tests.adapters.models import VIT
from tests.adapters.models import one_thread as one_thread
from tests.cli.calling import done
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
