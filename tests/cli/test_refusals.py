"""What cannot be asked of a command is one message on stderr, exit code 2, and nothing is done."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.cli.calling import call
from tokenzoo.scorers import FeatureNorm
from tokenzoo.tools import digits

REFUSED = [
    ("list recipe", "did you mean 'recipes'"),
    ("list --stage blok", "did you mean 'block'? there are block, embedded"),
    ("list --needs-no clz", "no evidence 'clz'; did you mean 'cls'?"),
    ("list --needs-no cls,,x", "--needs-no 'cls,,x'"),
    ("list --model qwen2_v", "'qwen2_v'"),
    ("list --model qwen2_v", "Types of transformers near it: qwen2_vl"),
    ("list --model resnet18", "it is not a vision transformer"),
    ("list scorers --stage block", "leave them out with 'scorers'"),
    ("list adapters --model llava", "leave them out with 'adapters'"),
    ("describe evoprun", "did you mean 'evoprune'"),
    ("demo --keep 0", "keep '0'"),
    ("demo --recipes tome,evoprun", "did you mean 'evoprune'"),
    ("demo --images 4 --rounds 5", "--rounds 5 with --images 4"),
    ("demo --out a.jpg", "must end in .png"),
    ("demo --out no/such/folder/a.png", "does not exist; create it"),
    ("demo --json a.txt", "must end in .json"),
    ("doctor test_vi", "the nearest are test_vit, test_vit2"),
    ("doctor vit_tiny_patch16_244", "vit_tiny_patch16_224"),
    ("doctor test_vit.nope", "'test_vit.nope'; the nearest are test_vit.r160_in1k"),
    ("doctor hub:a/b", "unknown library 'hub'"),
    ("doctor test_vit --recipe evoprun", "did you mean 'evoprune'"),
    ("doctor test_vit --keep 0", "keep '0'"),
    ("doctor test_vit --keep 3 --depth 2", "keep=3 of 100 tokens is out of reach"),
    ("viz nowhere.jpg", "nowhere.jpg"),
    ("viz text.txt", "text.txt cannot be read as an image"),
    ("viz collage:", "as in collage:0"),
    ("viz collage:-1", "as in collage:0"),
    ("viz collage:0 --recipe evoprun", "did you mean 'evoprune'"),
    ("viz collage:0 --recipe divprune", "works at Stage.PROJECTED"),
    ("viz collage:0 --keep 0", "keep '0'"),
    ("viz collage:0 --model test_vi", "the nearest are test_vit"),
    ("viz collage:0 --model open_clip:ViT-B-32", "'digits' or the name of a model of timm"),
    ("viz collage:0 --model resnet18", "it is not a vision transformer"),
    ("viz collage:0 --pretrained", "has its own weights"),
    ("viz collage:0 --weights text.txt", "has its own weights"),
    ("viz collage:0 --model test_vit --weights no.pth", "no.pth cannot be loaded"),
    ("viz collage:0 --model test_vit --weights text.txt", "cannot be loaded into"),
    ("viz collage:0 --model test_vit --weights t.safetensors", "cannot be loaded"),
    ("viz collage:0 --model test_vit --weights other.pth", "exactly this model"),
    ("viz collage:0 --model test_vit --weights a.pth --pretrained", "choose one"),
    ("viz collage:0 --out a.jpg", "must end in .png"),
    ("check tokenzoo_not_there:Part", "'tokenzoo_not_there' cannot be imported"),
    ("check tokenzoo_not_there:Part", "ModuleNotFound"),
    ("check :Part", "'' cannot be imported"),
    ("check :Part", "PACKAGE:PART"),
    ("check ..:Part", "'..' cannot be imported"),
    ("check tokenzoo.scorers:FeatureNrm", "mean 'FeatureNorm'"),
    ("check tokenzoo.scorers:", "no part of tokenzoo.scorers ''"),
    ("check tokenzoo.scorers:FeatureNorm.nothing", "no part of FeatureNorm 'nothing'"),
    ("check feature_nrm", "'feature_norm'"),
    ("check feature_nrm", "PACKAGE:PART"),
    ("check mine:needy", "mine:needy: _needy takes power"),
    ("check mine:failing", "ZeroDivisionError: no part today"),
    ("check mine:refusing", "mine:refusing: on='elsewhere'"),
    ("check mine:word", "mine:word: 'feature_norm', a str, cannot be checked"),
    ("check tokenzoo:Scorer", "tokenzoo:Scorer cannot be made"),
    ("check top_k", "matcher 'top_k': TopK takes scorer"),
    ("export digits out.pt", "must end in .onnx"),
    ("export digits out.onnx --image-size 96", "do not apply to the model 'digits'"),
    ("export digits out.onnx --recipe divprune", "works at Stage.PROJECTED"),
    ("export test_vi out.onnx", "the nearest are test_vit"),
    ("export test_vit out.onnx --weights none.safetensors", "none.safetensors"),
    ("export swin_tiny_patch4_window7_224 out.onnx", "windows of a fixed grid"),
    ("bench llava-1.5-8b", "llava-1.5-7b"),
    ("bench vit-b/16 --tiny --keep two", "keep 'two'"),
    ("bench vit-b/16 --tiny --recipe evprune", "evoprune"),
    ("bench vit-b/16 --tiny --mode graph", "mode='graph' on cpu"),
    ("bench vit-b/16 --tiny --mode eager,fast", "mode='fast'"),
    ("bench vit-b/16 --tiny --out nowhere/a.json", "folder nowhere does not exist"),
    ("bench vit-b/16 --tiny --out a.txt", "must end in .json"),
    ("bench vit-b/16 --tiny --plot a.jpg", "must end in .png"),
    ("bench vit-b/16 --tiny --dtype int8", "dtype='int8'"),
    ("bench vit-b/16 --tiny --device gpu", "device='gpu'"),
    ("bench vit-b/16 --tiny --layers 2", "no language model"),
    ("tune none --images . --target 2x", "0.5x"),
    ("tune none --images . --recipe tom", "tome"),
    ("tune none --images . --out recipe.txt", ".json"),
    ("tune none --images . --rounds 0", "rounds=0"),
]


def _needy(power: float) -> None:
    raise AssertionError


def _failing() -> None:
    raise ZeroDivisionError("no part today")


def _refusing() -> FeatureNorm:
    return FeatureNorm("elsewhere")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files that are not what is asked for, and a module of somebody's."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("no image")
    Path("t.safetensors").write_text("no tensors")
    torch.save({"head.weight": torch.zeros(3)}, "other.pth")
    module = ModuleType("mine")
    parts = {"needy": _needy, "failing": _failing, "refusing": _refusing, "word": "feature_norm"}
    vars(module).update(parts)
    monkeypatch.setitem(sys.modules, "mine", module)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def refused(line: str, words: str, folder: Path) -> None:
    before = sorted(folder.iterdir())
    result = call(*shlex.split(line))
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.startswith("tokenzoo: ")
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(("line", "words"), REFUSED)
def test_what_cannot_be_asked(
    line: str, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if line.startswith("demo"):
        monkeypatch.setattr(digits, "load_digits_vit", lambda: pytest.fail("the work began"))
    refused(line, words, folder)


@pytest.mark.parametrize(
    ("line", "module", "extra"),
    [
        ("demo", "matplotlib.figure", "viz"),
        ("viz collage:0", "matplotlib.figure", "viz"),
        ("check feature_norm", "hypothesis", "testing"),
    ],
)
def test_the_extra_that_is_missing_is_named(
    line: str, module: str, extra: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.startswith(("hypothesis", "tokenzoo.testing")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(digits, "load_digits_vit", lambda: pytest.fail("the work began"))
    refused(line, f"pip install 'tokenzoo[{extra}]'", folder)
