"""`knn` and `linear`: features are those of the attached model; a merged token counts as its patches."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.models import VIT, gap, images
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation import TaskOptions, data, jobs, run
from tokenzoo.evaluation.tasks import prepare, probe

COLOURS = {"blue": (20, 40, 220), "green": (20, 200, 40), "red": (220, 40, 20)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine pictures of each of three classes, which their colour tells apart."""
    for name, colour in COLOURS.items():
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(9):
            shade = tuple(max(0, one - 2 * index) for one in colour)
            Image.new("RGB", (30, 20), shade).save(tmp_path / "set" / name / f"{index}.png")
    return tmp_path / "set"


def parquet(folder: Path, column: str, struct: bool) -> Path:
    files = data.image_files(folder)
    content = [{"bytes": one.read_bytes()} if struct else one.read_bytes() for one in files]
    labels = [sorted(COLOURS).index(one.parent.name) for one in files]
    pq.write_table(pa.table({column: content, "label": labels}), folder.parent / "set.parquet")
    return folder.parent / "set.parquet"


@pytest.mark.parametrize("task", ["knn", "linear"])
def test_colours_are_told_apart(folder: Path, task: str) -> None:
    options = TaskOptions("vit_tiny_patch16_224", folder, samples=9)
    subject = prepare(task, options)
    assert (subject.samples, subject.facts["reference"]) == (9, 18)
    bare, row = run(subject, jobs(["random"], [49]), rounds=0)
    assert bare.scores["mean"] == [1] * 9
    assert (row.status, row.tokens, list(row.scores)) == ("ok", 49, ["cls", "mean"])


def test_features_are_computed_once_for_a_label_and_for_both_tasks(folder: Path) -> None:
    options = TaskOptions("vit_tiny_patch16_224", folder, samples=9)
    subjects = [prepare(name, options) for name in ("knn", "linear")]
    images: list[int] = []
    subjects[0].model.patch_embed.register_forward_pre_hook(
        lambda module, args: images.append(len(args[0]))
    )
    rows = [list(run(one, jobs(["tome"], [49]), rounds=0)) for one in subjects]
    # Both sets, bare and reduced; and a pass of each row's plan.
    assert sum(images) == 2 * 27 + 2 * probe.TIMED
    assert [row.tokens for row in (rows[0][1], rows[1][1])] == [49, 49]
    images.clear()
    with torch.no_grad():
        for which in (range(3), range(3, 9)):
            scores = subjects[0].score(subjects[0].model, which, "another label").scores
            assert len(scores["cls"]) == len(which)
    assert sum(images) == 27


def test_reference_and_test_share_no_picture(folder: Path) -> None:
    store = probe.loaded("vit_tiny_patch16_224", folder, None, 9, 0)
    pictures = torch.cat([store.reference.images, store.test.images]).flatten(1)
    assert len(torch.unique(pictures, dim=0)) == 27
    assert store.test.labels.bincount().tolist() == [3, 3, 3]
    assert store.reference.labels.bincount().tolist() == [6, 6, 6]


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_a_merged_token_counts_as_its_patches(kind: str) -> None:
    """Merged before the first attention changes anything: the mean is that of all patches."""
    if kind == "timm":
        model, prefix = VIT.build(depth=2, img_size=64), 1
        x = images(model)
    else:
        model, prefix = hf.tower("clip", num_hidden_layers=2), 1
        x = hf.pixels(model)["pixel_values"]
    with torch.no_grad():
        whole = probe.read(model, x, prefix)
        with tokenzoo.build("tome", keep=1.0).attach(model):
            assert gap(probe.read(model, x, prefix)["mean"], whole["mean"]) <= 1e-5
        with tokenzoo.build("tome", keep=0.5).attach(model) as attached:
            tokens = probe.tokens_of(model, x)
            mass = attached.mass[:, prefix:, None]
            wanted = (tokens[:, prefix:] * mass).sum(1) / mass.sum(1)
            assert mass.max() > 1
            assert gap(probe.read(model, x, prefix)["mean"], wanted) <= 1e-6
            assert gap(tokens[:, prefix:].mean(1), wanted) > 1e-3


@pytest.mark.parametrize(("column", "struct"), [("image", True), ("img", False)])
def test_a_parquet_file_has_the_same_images(folder: Path, column: str, struct: bool) -> None:
    found = data.labelled(parquet(folder, column, struct), 12, 32, seed=3)
    wanted = data.labelled(folder, 12, 32, seed=3)
    assert torch.equal(found.images, wanted.images)
    assert found.labels.tolist() == wanted.labels.tolist()
    assert wanted.classes == tuple(COLOURS)


def test_digits_without_a_file() -> None:
    found, again = (data.sample_digits(30, 32, seed) for seed in (0, 1))
    assert found.images.shape == (30, 3, 32, 32)
    assert found.labels.bincount().tolist() == [3] * 10
    assert len(torch.unique(found.images.flatten(1), dim=0)) == 30
    assert not torch.equal(found.images, again.images)
    with pytest.raises(BadArgumentError, match="of the digit 8, 175 are needed"):
        data.sample_digits(1750, 32)


def test_what_cannot_be_read(folder: Path) -> None:
    broken = folder.parent / "broken.parquet"
    broken.write_bytes(b"PAR1")
    for path, count, named in (
        (folder, 30, r"'blue' .* has 9 images, 10 are needed"),
        (folder / "none", 1, "no such file or folder"),
        (folder / "red", 1, "has no folders"),
        (broken, 1, "cannot be read as parquet"),
        (parquet(folder, "picture", False), 1, r"columns .*'picture'"),
    ):
        with pytest.raises(BadArgumentError, match=named):
            data.labelled(path, count, 32)
    for name in ("blue", "green"):
        shutil.rmtree(folder / name)
    with pytest.raises(BadArgumentError, match="has 1 class;"):
        prepare("knn", TaskOptions("vit_tiny_patch16_224", folder, samples=3))
    with pytest.raises(BadArgumentError, match="ResNet does not return its tokens"):
        probe.tokens_of(type("ResNet", (), {"__call__": lambda self, x: x})(), torch.ones(1))
