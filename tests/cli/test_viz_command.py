"""`tokenzoo viz` draws what happened, over the image that the model saw, and says what the weights are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import tokenzoo
from tests.cli.calling import call, done
from tests.cli.calling import small_vit as small_vit
from tokenzoo.cli import viz as command
from tokenzoo.cli import viz_images
from tokenzoo.tools import digits, model_loading
from tokenzoo.tools.tracing import trace_tokens

RANDOM = "The weights are random"
PICTURES = Path(__file__).parents[2] / "docs" / "pictures"


@pytest.fixture
def drawn(monkeypatch):
    """What was handed to the gallery."""
    calls = []
    gallery = command.gallery

    def note(panels, columns, path, **texts):
        calls.append((panels, columns, texts))
        return gallery(panels, columns, path, **texts)

    monkeypatch.setattr(command, "gallery", note)
    return calls


@pytest.fixture
def photo(tmp_path):
    """A photograph, 300 x 200, red on the left and blue on the right."""
    image = Image.new("RGB", (300, 200), (200, 0, 0))
    image.paste((0, 0, 100), (150, 0, 300, 200))
    image.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_recipes_side_by_side_on_collages(small_vit, drawn, tmp_path) -> None:
    out = tmp_path / "out.png"
    result = done(
        *("viz", "collage:3", "collage:4", "--recipe", "evoprune,random", "--recipe", "downsample"),
        *("--keep", 16, "--see-through", 0, "--out", out),
    )
    assert out.read_bytes().startswith(b"\x89PNG")
    blocks = tokenzoo.build("evoprune", keep=16).plan(64, 4, prefix=1, width=24).blocks
    changes = [n for n, before in zip(blocks, (64, *blocks), strict=False) if n != before]
    lines = result.output.splitlines()
    assert f"evoprune: 64 -> {', '.join(map(str, changes))} tokens" in lines
    assert "downsample: 64 -> 16 tokens" in lines
    assert RANDOM not in result.output

    ((rows, columns, texts),) = drawn
    assert columns == [
        ("original", "64 tokens"),
        *((name, "16 tokens") for name in ("evoprune", "random", "downsample")),
    ]
    images = torch.cat([digits.collages("test", 1, seed=seed).images for seed in (3, 4)])
    for column, name in enumerate(("evoprune", "random", "downsample"), start=1):
        trace = trace_tokens(tokenzoo.build(name, keep=16), small_vit, images)
        seen = images if trace.small is None else trace.small
        for index, row in enumerate(rows):
            wanted = trace.picture((seen[index] * 0.5 + 0.5).clamp(0, 1), index)
            assert torch.equal(row[column].picture, wanted)
    assert [row[0].note for row in rows] == ["collage:3", "collage:4"]
    assert command.SMALLER in texts["caption"]
    assert RANDOM not in texts["caption"]


def test_a_picture_after_each_block(small_vit, drawn, tmp_path) -> None:
    done(
        *("viz", "collage:3", "--recipe", "tome,pool", "--keep", "25%", "--sites"),
        *("--out", tmp_path / "out.png"),
    )
    ((rows, columns, _),) = drawn
    tome = tokenzoo.build("tome", keep=0.25).plan(64, 4, prefix=1, width=24).blocks
    assert columns == [
        ("original", "64 tokens"),
        *(("tome", f"block {block}: {count} tokens") for block, count in enumerate(tome)),
        ("pool", "block 1: 16 tokens"),
    ]
    assert len(rows[0]) == len(columns)
    assert not torch.equal(rows[0][1].picture, rows[0][4].picture)


def test_a_photograph_is_cropped_as_the_model_wants_it(photo, drawn, tmp_path) -> None:
    result = done("viz", photo, "--model", "test_vit", "--out", tmp_path / "out.png")
    assert RANDOM in result.output
    ((rows, columns, texts),) = drawn
    assert texts["caption"].startswith(RANDOM)
    assert columns == [("original", "100 tokens"), ("evoprune", "25 tokens")]
    original = rows[0][0].picture
    assert original.shape == (3, 160, 160)
    # Its colours are the photograph's again, and the middle is still in the middle.
    red, blue = original[:, :, :78].mean((1, 2)), original[:, :, 82:].mean((1, 2))
    assert torch.allclose(red, torch.tensor([200 / 255, 0, 0]), atol=0.01)
    assert torch.allclose(blue, torch.tensor([0, 0, 100 / 255]), atol=0.01)


def test_collages_are_images_for_any_model(drawn, tmp_path) -> None:
    done("viz", "collage:5", "--model", "test_vit", "--out", tmp_path / "out.png")
    shown = drawn[0][0][0][0].picture
    collage = digits.collages("test", 1, seed=5).images / 2 + 0.5
    small = torch.nn.functional.interpolate(shown[None], size=64, mode="area")
    assert float((small - collage).abs().mean()) < 0.1


@pytest.mark.parametrize("form", ["safetensors", "pth", "checkpoint"])
def test_weights_of_ones_own(photo, drawn, tmp_path, form) -> None:
    model = model_loading.create("test_vit").model
    model_loading.randomise(model, seed=7)
    state = dict(model.state_dict())
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "pth":
        torch.save(state, path)
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    result = done(
        *("viz", photo, "--model", "test_vit", "--weights", path, "--see-through", 0),
        *("--out", tmp_path / "out.png"),
    )
    assert RANDOM not in result.output
    eyes = viz_images.reader("test_vit", weights=path)
    x = eyes.read([str(photo)])
    trace = trace_tokens(tokenzoo.build("evoprune", keep=0.25), model, x)
    assert torch.equal(drawn[0][0][0][1].picture, trace.picture(eyes.light(x)[0], 0))


def test_trained_weights_are_fetched_when_asked_for(drawn, monkeypatch, tmp_path) -> None:
    asked = []

    def create(name, **options):
        asked.append(options)
        if options:
            raise OSError("no network")
        return model_loading.Tower(model, (3, 160, 160))

    model = model_loading.create("test_vit").model
    monkeypatch.setattr(viz_images.model_loading, "create", create)
    done("viz", "collage:0", "--model", "test_vit", "--out", tmp_path / "a.png")
    result = call(
        "viz", *("collage:0", "--model", "test_vit", "--pretrained"), "--out", tmp_path / "b.png"
    )
    assert asked == [{}, {"pretrained": True}]
    assert result.exit_code == 2
    assert "no network. Pass a file: --weights" in result.stderr


def test_the_pictures_of_the_documents_are_small() -> None:
    found = sorted(PICTURES.glob("*.png"))
    names = ["collage", "gallery", "photograph", "sites", "video-cut", "video-moving"]
    assert [path.stem for path in found] == names
    text = "".join((PICTURES.parent / name).read_text() for name in ("pictures.md", "video.md"))
    for path in found:
        assert path.stat().st_size < 400_000
        assert f"(pictures/{path.name})" in text
