"""`classify`: folders named after the classes of a timm model; timm's own preprocessing."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from tokenzoo.errors import BadArgumentError, UnknownNameError
from tokenzoo.evaluation import TaskOptions, jobs, run
from tokenzoo.evaluation.tasks import classify, prepare

NAME = "vit_tiny_patch16_224"


def images(root: Path, *classes: str) -> Path:
    """Two pictures of each class; not square, so that a crop shows."""
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(2):
            noise = torch.Generator().manual_seed(2 * place + index)
            pixels = torch.randint(256, (90, 140, 3), dtype=torch.uint8, generator=noise)
            pixels[..., (place + index) % 3] //= 8  # so that answers differ
            Image.fromarray(pixels.numpy()).save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier of three classes with names and a preprocessing of its own."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    size = {"img_size": 64, "embed_dim": 48, "num_heads": 2, "depth": 4}
    model = timm.create_model(NAME, num_classes=3, weight_init="", **size)
    torch.nn.init.normal_(model.head.weight)
    x = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # otherwise all images are of one class
        model.head.bias -= model.eval()(x).mean(0)
    shown = {"input_size": (3, 64, 64), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    model.pretrained_cfg.update(
        shown, num_classes=3, crop_pct=0.5, label_names=["cat", "dog", "n02"]
    )
    model.pretrained_cfg["label_descriptions"] = {"n02": "fire engine, fire truck"}
    timm.models.save_for_hf(model, folder, model_args=size)
    return folder


@pytest.mark.parametrize(
    "names", [("0", "1", "2"), ("000", "001", "002"), ("cat", "dog", "fire engine, fire truck")]
)
def test_hits_are_those_of_the_checkpoint(checkpoint: Path, tmp_path: Path, names: tuple[str, ...]):
    """Top-1 of the loaded weights on the images as timm prepares them."""
    root = images(tmp_path, *names)
    model = timm.create_model(f"local-dir:{checkpoint}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    files = [root / name / f"{index}.png" for name in names for index in range(2)]
    with torch.no_grad():
        wanted = model(torch.stack([transform(Image.open(file)) for file in files])).argmax(1)
    assert len(wanted.unique()) > 1

    subject = prepare("classify", TaskOptions(str(checkpoint), root, samples=6))
    with torch.inference_mode():
        outcome = subject.score(subject.model, range(6), "bare")
    assert outcome.answers is not None
    assert torch.equal(outcome.answers, wanted)
    assert torch.equal(outcome.scores["top-1"], wanted == torch.tensor([0, 0, 1, 1, 2, 2]))
    bare, row = run(subject, jobs(["tome"], [8]), rounds=0)
    assert (bare.agreement, row.status, row.tokens) == ([1] * 6, "ok", 8)


def test_imagenet_has_labels_and_descriptions() -> None:
    model = classify.classifier(NAME, 32)
    assert model.patch_embed.img_size == (32, 32)
    found = classify.class_indices(model, ["n01443537", "tench, Tinca tinca", "999"])
    assert found == [1, 0, 999]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("cat", "bird"), r"'bird' is not a class of the model.* 0 to 2.*cat, dog, n02"),
        (("3",), "'3' is not a class of the model"),
        (("0", "cat"), "'0' and 'cat' are both class 0"),
    ],
)
def test_folders_that_are_no_classes(
    checkpoint: Path, tmp_path: Path, folders: tuple[str, ...], message: str
) -> None:
    with pytest.raises(BadArgumentError, match=message):
        prepare("classify", TaskOptions(str(checkpoint), images(tmp_path, *folders), samples=2))


def test_models_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(BadArgumentError, match="labelled images"):
        prepare("classify", TaskOptions(NAME))
    for name, size, error, named in (
        ("torchvision:vit_b_16", None, BadArgumentError, "torchvision"),
        ("vit_tinny", None, UnknownNameError, "'vit_tinny'"),
        ("vit_small_patch14_dinov2", 56, BadArgumentError, "has no classes"),
        (str(tmp_path), None, BadArgumentError, "checkpoint"),
    ):
        with pytest.raises(error, match=named):
            classify.classifier(name, size)
