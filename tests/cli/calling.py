"""How the tests call the command line, and the tiny model that it then loads."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
from timm.models.vision_transformer import VisionTransformer
from typer.testing import CliRunner

from tokenzoo.cli import app
from tokenzoo.tools import digits, model_loading

# With an older click the runner mixes stdout and stderr unless it is told not to.
SEPARATE: Any = {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}


def call(*arguments: Any) -> Any:
    return CliRunner(**SEPARATE).invoke(app, [str(argument) for argument in arguments])


def done(*arguments: Any) -> Any:
    """What a call has said that succeeds."""
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def small_vit(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny model in place of the shipped one: 64 patch tokens, 4 blocks, random weights."""
    vit = VisionTransformer(
        img_size=64, patch_size=8, embed_dim=24, depth=4, num_heads=2, num_classes=60
    ).eval()
    model_loading.randomise(vit)
    monkeypatch.setattr(digits, "load_digits_vit", lambda: vit)
    return vit
