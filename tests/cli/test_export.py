"""`tokenzoo export`: which model, with which weights, and what is said about the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.adapters.hf.models import pixels, tower
from tests.adapters.models import gap
from tests.cli.calling import call, done
from tokenzoo.cli import export
from tokenzoo.errors import ExportError
from tokenzoo.tools import model_loading
from tokenzoo.tools.onnx import Exported

runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def exported(*arguments: Any) -> Any:
    return done("export", *arguments)


@pytest.fixture
def asked(monkeypatch: Any) -> list[Any]:
    """Notes what is to be exported, and exports nothing."""
    found: list[Any] = []

    def note(zoo: Any, model: Any, example: Any, path: Path, *, dynamic: bool) -> Exported:
        found.append((zoo, model, example, dynamic))
        return Exported(path, 1, 20, ("x",), dynamic, (1, 3), 100, (25,), 1e-6, {"TopK": 2})

    monkeypatch.setattr(export, "export", note)
    return found


def test_the_folder_of_a_checkpoint_has_its_weights(tmp_path: Path) -> None:
    model = tower("clip", num_hidden_layers=2, image_size=28)
    model.save_pretrained(tmp_path / "clip")
    out = tmp_path / "clip.onnx"
    result = exported(tmp_path / "clip", out, "--keep", "1.0")
    lines = result.stdout.splitlines()
    # Older converters print a line of their own before ours.
    assert any(line.startswith(f"file        {out}, ") for line in lines)
    assert "takes       pixel_values: any number of images" in lines
    assert "tokens      16 -> 16, 16" in lines
    assert "random" not in result.output
    x = pixels(model)
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    found = session.run(None, {"pixel_values": x["pixel_values"].numpy()})
    with torch.no_grad():
        expected = model(**x).last_hidden_state
    assert gap(torch.tensor(found[0]), expected) <= 1e-5


def test_random_weights_are_said_aloud(asked: list[Any], tmp_path: Path) -> None:
    result = exported("test_vit", tmp_path / "out.onnx", "--recipe", "tome", "--keep", 40)
    assert "The weights are random" in result.stderr
    zoo, model, example, dynamic = asked[0]
    assert (zoo.name, zoo.recipe.keep, dynamic) == ("tome", 40, True)
    assert tuple(example.shape) == (2, 3, 160, 160)
    assert not model.training


def test_weights_batch_and_size(asked: list[Any], tmp_path: Path) -> None:
    made = model_loading.create("test_vit", img_size=96).model
    model_loading.randomise(made, seed=7)
    save_file(made.state_dict(), tmp_path / "w.safetensors")
    out = tmp_path / "out.onnx"
    arguments = ("--weights", tmp_path / "w.safetensors", "--batch", 3, "--image-size", 96)
    result = exported("test_vit", out, *arguments)
    assert "random" not in result.output
    _, model, example, dynamic = asked[0]
    assert tuple(example.shape) == (3, 3, 96, 96)
    assert not dynamic
    for (name, value), same in zip(model.named_parameters(), made.parameters(), strict=True):
        assert torch.equal(value, same), name


@pytest.mark.parametrize(
    ("name", "shape"),
    [("torchvision:vit_b_32", (3, 64, 64)), ("digits", (3, 64, 64))],
)
def test_models_of_others(name: str, shape: Any, asked: list[Any], tmp_path: Path) -> None:
    size = () if name == "digits" else ("--image-size", 64)
    result = exported(name, tmp_path / "out.onnx", *size)
    assert tuple(asked[0][2].shape[1:]) == shape
    assert ("random" in result.stderr) == (name != "digits")


def test_no_file_is_exit_code_1(monkeypatch: Any, tmp_path: Path) -> None:
    def fails(*arguments: Any, **options: Any) -> None:
        raise ExportError("they differ")

    monkeypatch.setattr(export, "export", fails)
    result = call("export", "digits", tmp_path / "out.onnx")
    assert result.exit_code == 1
    assert result.stderr == "tokenzoo: they differ\n"
    assert result.stdout == ""
