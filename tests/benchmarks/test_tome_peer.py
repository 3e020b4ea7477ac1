"""The comparison with ToMe's patch, with stand-ins for the original: its output and its errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
import tome_peer as bench
import torch

from tokenzoo.errors import BadArgumentError

SAME = """
import types, tokenzoo

def put_on(model, prop_attn=False):
    class Patched(type(model)):
        def __call__(self, x):
            with tokenzoo.build("tome", r=self.r, proportional_attention=prop_attn).attach(self):
                return super().__call__(x)
    model.__class__ = Patched

patch = types.SimpleNamespace(timm=put_on)
"""
NOTHING = "import types\npatch = types.SimpleNamespace(timm=lambda model, prop_attn: None)\n"


@pytest.fixture(autouse=True)
def _as_before() -> Generator[None]:
    threads, modules = torch.get_num_threads(), sys.modules.get("tome")
    yield
    torch.set_num_threads(threads)
    sys.modules.pop("tome", None)
    if modules is not None:
        sys.modules["tome"] = modules


def checkout(folder: Path, text: str) -> Path:
    """A folder with a package `tome`."""
    (folder / "tome").mkdir()
    (folder / "tome" / "__init__.py").write_text(text)
    return folder


def asked(tome: Path, out: Path, *more: str) -> list[str]:
    given = ["--tome", str(tome), "--model", "tiny", "--r", "2", "--batch", "1", "--threads", "1"]
    return [*given, "--rounds", "2", "--out", str(out), *more]


def test_the_file_says_what_was_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "times.json"
    bench.main(asked(checkout(tmp_path, SAME), out, "--r", "2", "3", "--dtype", "bfloat16"))
    content = json.loads(out.read_text())
    assert content["command"].startswith("python benchmarks/tome_peer.py --tome")
    assert (content["dtype"], content["mode"], content["rounds"]) == ("bfloat16", "eager", 2)
    assert [(row["r"], row["scale"]) for row in content["logits"]] == [
        (2, 1.0), (3, 1.0), (2, 2.0), (3, 2.0)
    ]  # fmt: skip
    assert all(row["gap"] <= 1e-4 < row["from_bare"] for row in content["logits"])
    names = [row["what"] for row in content["time"]]
    assert names == [
        "bare",
        *(f"{what}, r={r}" for r in (2, 3) for what in ("the original", "tome", "blocks alone")),
        "tome, keep=1.0",
        "tome, r=0",
        "bare again",
    ]
    assert content["time"][0]["median"] == 1
    assert [(row["what"], row["r"]) for row in content["throughput"]] == [
        ("tome", 2), ("blocks alone", 2), ("tome", 3), ("blocks alone", 3)
    ]  # fmt: skip
    # The stand-in attaches in every call, which takes longer than all the rest.
    assert all(row["median"] > 1 for row in content["throughput"])
    assert "| tiny | 1 | tome, r=2 |" in capsys.readouterr().out


def test_linear_layers_by_onednn_are_the_same_model(tmp_path: Path) -> None:
    model, images = bench.made("tiny", "cpu")
    other = bench.packed(model, 2 * 16)
    assert sum(isinstance(module, bench.Packed) for module in other.modules()) == 3 * 4 + 1
    assert not any(isinstance(module, bench.Packed) for module in model.modules())
    with torch.inference_mode():
        torch.testing.assert_close(other(images(2)), model(images(2)), rtol=1e-4, atol=1e-5)
    out = tmp_path / "times.json"
    bench.main(asked(checkout(tmp_path, SAME), out, "--linear", "onednn"))
    content = json.loads(out.read_text())
    assert content["linear"] == "onednn"
    assert [row["what"] for row in content["time"]][:2] == ["bare, linear layers by torch", "bare"]
    assert all(row["pages"] >= 0 for row in content["time"])


@pytest.mark.parametrize(
    ("original", "more", "error", "named"),
    [
        (SAME, ("--linear", "onednn", "--dtype", "bfloat16"), BadArgumentError, "--dtype bfloat16"),
        (NOTHING, (), bench.UnequalError, "tiny, r=2, weights x 1"),
    ],
)
def test_what_cannot_be_compared(
    original: str, more: tuple[str, ...], error: type[Exception], named: str, tmp_path: Path
) -> None:
    out = tmp_path / "times.json"
    with pytest.raises(error, match=named):
        bench.main(asked(checkout(tmp_path, original), out, *more))
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no folder"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("", "AttributeError"),
    ],
)
def test_a_path_without_the_package(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        checkout(tmp_path, text)
    with pytest.raises(
        BadArgumentError, match=rf"{said}.*pass a checkout of facebookresearch/ToMe"
    ):
        bench.main(asked(tmp_path, tmp_path / "times.json"))
    assert str(tmp_path) not in sys.path


def test_blocks_alone_are_the_bare_model_where_nothing_is_removed() -> None:
    model, images = bench.made("tiny", "cpu")
    with torch.inference_mode():
        assert torch.equal(bench.alone(model, [16] * 3, images(2)), model(images(2)))
        assert not torch.equal(bench.alone(model, [16, 8, 8], images(2)), model(images(2)))
