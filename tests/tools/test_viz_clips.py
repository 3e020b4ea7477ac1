"""Pictures of a clip: the pixels of patches say what became of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from tests.refusals import refused
from tokenzoo.errors import MissingDependencyError
from tokenzoo.token_map import TokenMap
from tokenzoo.tools.clip_tracing import ClipTrace
from tokenzoo.tools.pixels import LINE
from tokenzoo.tools.viz_clips import SHARED, clip_pictures, write_animation

# Two frames of 2 x 2 patches: 0 is shared; 1 and 3 are merged; 5 is alone; the others are dropped.
TRACE = ClipTrace(
    TokenMap(torch.tensor([[0, 3, 5]]), torch.tensor([[0, 1, -1, 1, 0, 2, -1, -1]])), 2, (2, 2)
)
GREY = torch.full((2, 3, 8, 8), 0.5)


@pytest.fixture(scope="module")
def patches() -> Tensor:
    """The patches of the pictures, `[f * n, 3, 224, 224]`."""
    pictures = clip_pictures(GREY, TRACE, see_through=0)
    assert pictures.shape == (2, 3, 448, 448)
    return pictures.unfold(2, 224, 224).unfold(3, 224, 224).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


def test_patches_are_filled_by_what_became_of_them(patches: Tensor) -> None:
    middles = patches[:, :, 60:160, 60:160]
    colours = middles.mean((2, 3))  # [f * n, 3]
    for shared in (0, 4):
        assert torch.allclose(colours[shared], torch.tensor(SHARED), atol=1e-5)
    assert torch.equal(colours[1], colours[3])
    assert not torch.allclose(colours[1], colours[0], atol=0.2)
    assert torch.equal(middles[5], GREY[0, :, :1, :1].expand(3, 100, 100))
    for dropped in (2, 6, 7):
        assert middles[dropped].mean() < 0.25
        assert middles[dropped].std() > 0.01  # hatched


def test_an_output_has_a_line_where_it_stands(patches: Tensor) -> None:
    line = 0.15 * torch.tensor(SHARED) + 0.85 * torch.tensor(LINE)
    assert torch.allclose(patches[0, :, -1, 100], line, atol=1e-5)
    amber = ((patches[..., 0, :] > 0.8) | (patches[..., -1, :] > 0.8))[:, 0].sum(-1) > 150
    assert amber.nonzero()[:, 0].tolist() == [0, 3, 5]


def test_the_animation_shows_each_frame_until_the_next(tmp_path: Path) -> None:
    columns = [("original", GREY[:1].repeat(3, 1, 1, 1)), ("half", torch.zeros(3, 3, 16, 16))]
    for at in range(3):
        columns[0][1][at] *= at + 0.5  # equal frames would become one
    with Image.open(write_animation(columns, [0.0, 0.2, 0.5], tmp_path / "a.gif")) as image:
        found = [(one.size, one.info["duration"]) for one in ImageSequence.Iterator(image)]
    assert found == [((16 + 8 + 16, 32), duration) for duration in (200, 300, 300)]
    with Image.open(write_animation(columns, [float("nan")] * 3, tmp_path / "b.gif")) as image:
        assert [one.info["duration"] for one in ImageSequence.Iterator(image)] == [500] * 3
    with Image.open(write_animation(columns, [0.0, 0.2, 0.5], tmp_path / "c.webp")) as image:
        assert (image.format, image.n_frames) == ("WEBP", 3)


def test_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(lambda: clip_pictures(GREY[:1], TRACE), "(1, 3, 8, 8)", "[2, 3, h, w]")
    refused(lambda: clip_pictures(GREY, TRACE, see_through=2), "see_through=2")
    refused(lambda: write_animation([("a", GREY)], [0.0], tmp_path / "a.gif"), "at 1 times")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    refused(
        lambda: write_animation([("a", GREY)], [0.0, 0.1], tmp_path / "a.gif"),
        "tokenzoo[viz]",
        kind=MissingDependencyError,
    )
