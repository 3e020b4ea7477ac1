"""`tokenzoo viz` of a video: a sheet of its frames with what is left of them, or an animation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import tokenzoo
from benchmarks.synthetic_clips import write
from tests.cli.calling import call, done
from tests.cli.calling import small_vit as small_vit
from tokenzoo.cli import viz_clips
from tokenzoo.cli.viz_images import reader
from tokenzoo.tools.clip_tracing import trace_clip
from tokenzoo.tools.video import read_frames
from tokenzoo.tools.viz_clips import clip_pictures


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten frames of 96 x 64, in which something moves."""
    frames = torch.full((10, 64, 96, 3), 60, dtype=torch.uint8)
    for at in range(10):
        frames[at, 20:40, 16 + 4 * at : 36 + 4 * at] = 230
    return write(tmp_path_factory.mktemp("clip") / "moving.mp4", frames)


def test_a_sheet_has_the_frames_and_what_is_left_of_them(
    small_vit, clip, tmp_path, monkeypatch
) -> None:
    drawn = []
    monkeypatch.setattr(viz_clips, "gallery", lambda *given, **texts: drawn.append((given, texts)))
    recipes = ("holitom", "tome", "downsample")
    result = done(
        *("viz", clip, "--recipe", ",".join(recipes), "--keep", 16, "--frames", 4),
        *("--see-through", 0.2, "-o", tmp_path / "sheet.png"),
    )
    assert "holitom: 4 frames, 256 -> 64 tokens;" in result.stdout
    (((rows, columns, path), texts),) = drawn
    assert path == tmp_path / "sheet.png"
    assert columns == [(f"{at / 10:.2f} s", f"frame {i}") for i, at in enumerate((1, 3, 6, 8))]
    assert "moving.mp4: digits, keep 16" in texts["title"]
    eyes = reader("digits")
    x = eyes.frames(read_frames(clip, 4).frames)
    assert torch.equal(torch.stack([panel.picture for panel in rows[0]]), eyes.light(x))
    for name, row in zip(recipes, rows[1:], strict=True):
        trace = trace_clip(tokenzoo.build(name, keep=16), small_vit, x)
        light = eyes.light(x if trace.small is None else trace.small)
        wanted = clip_pictures(light, trace, see_through=0.2)
        assert torch.equal(torch.stack([panel.picture for panel in row]), wanted)
        assert [panel.note for panel in row] == [f"{name}: {n} tokens" for n in trace.of_frames]


def test_an_animation_of_the_default_recipe(small_vit, clip, tmp_path) -> None:
    result = done("viz", clip, "--out", tmp_path / "a.gif")
    assert "holitom: 8 frames" in result.stdout
    assert "An amber outline is a token that is left." in result.stdout
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.n_frames, image.size) == (8, (448 + 8 + 448, 16 + 448))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("CLIP", "--frames", 11), "has 10 frames, and 11 are asked for"),
        (("CLIP", "collage:0"), "2 files with a video; pass one video"),
        (("CLIP", "--sites"), "--sites with a video"),
        (("CLIP", "--out", "a.jpg"), "a.jpg must end in .png or .gif or .webp"),
        (("collage:0", "--out", "a.gif"), "a.gif must end in .png"),
        (("collage:0", "--frames", 8), "collage:0 does not exist; pass a video file"),
    ],
)
def test_what_cannot_be_shown(small_vit, clip, arguments, text) -> None:
    given = [clip if argument == "CLIP" else argument for argument in arguments]
    result = call("viz", *given)
    assert result.exit_code == 2
    assert text in " ".join(result.stderr.split())
