"""The tasks `digits` and `dense`: what is scored is what their pages say."""

from __future__ import annotations

import pytest
import torch

import tokenzoo
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation import Subject, TaskOptions, focus_vit, jobs, run
from tokenzoo.evaluation.tasks import dense, prepare
from tokenzoo.tools import digits


def test_digits_are_scored_as_their_accuracy() -> None:
    subject = prepare("digits", TaskOptions(samples=12, seed=3))
    data = digits.collages("test", 12, seed=3)
    with torch.no_grad(), tokenzoo.build("tome", keep=16).attach(subject.model):
        scores = subject.score(subject.model, range(12), "").scores
        wanted = digits.accuracy(subject.model(data.images), data)
    assert {name: value.double().mean().item() for name, value in scores.items()} == pytest.approx(
        wanted
    )
    assert list(scores) == ["all counts", "counts", "marked"]


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("digits", "model"),
        ("digits", "size"),
        ("dense", "model"),
        ("collage-vqa", "size"),
        ("documents", "size"),
    ],
)
def test_what_a_task_has_of_its_own(task: str, name: str) -> None:
    options = TaskOptions(model="vit") if name == "model" else TaskOptions(size=28)
    with pytest.raises(BadArgumentError, match=f"{name}=.*leave {name} away"):
        prepare(task, options)


@pytest.fixture
def subject(monkeypatch: pytest.MonkeyPatch) -> Subject:
    """The task `dense` of 4 x 4 patches, with random weights."""
    torch.manual_seed(0)
    model = focus_vit.FocusViT(focus_vit.backbone()).eval()
    monkeypatch.setattr(dense, "load_focus_vit", lambda: model)
    return prepare("dense", TaskOptions(samples=3, size=60))


def test_dense_compares_with_the_bare_model(subject: Subject) -> None:
    """A smaller image has its features put back on the grid; all patches of a reduced one are there."""
    assert subject.facts["size"] == 56
    recipes = ["tome", "downsample"]
    bare, *rows = run(subject, jobs(recipes, [4]), rounds=0)
    for scores in bare.scores.values():
        assert scores == pytest.approx([1] * 3, abs=1e-5)
    for row in rows:
        assert (row.status, row.tokens) == ("ok", 4)
        assert all(-1 <= one < 0.9999 for one in row.scores["features"])
    refused = list(run(subject, jobs(["downsample"], [7]), rounds=0))[1]
    assert (refused.status, refused.scores) == ("refused", {})


def test_correlation_is_pearsons() -> None:
    ours, other = torch.randn(2, 50), torch.randn(2, 50)
    found = dense.correlation(torch.cat([ours, ours[:1]]), torch.cat([other, torch.ones(1, 50)]))
    wanted = [torch.corrcoef(torch.stack([ours[i], other[i]]))[0, 1].item() for i in range(2)]
    assert found.tolist() == pytest.approx([*wanted, 0.0], abs=1e-6)


@pytest.mark.parametrize("count", [1, 5])
def test_crops_are_different_pictures(count: int) -> None:
    crops = dense.sample_crops(count, 28)
    assert crops.shape == (count, 3, 28, 28)
    assert 0 <= crops.min() < crops.max() <= 1
    assert len(torch.unique(crops.flatten(1), dim=0)) == count
