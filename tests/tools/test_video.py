"""Frames of a file are those at the middles of equal parts, as a player shows them."""

from __future__ import annotations

import sys
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor

from benchmarks.synthetic_clips import write
from tests.refusals import refused
from tokenzoo.errors import MissingDependencyError
from tokenzoo.tools import video
from tokenzoo.tools.video import read_frames


def numbered(count: int, height: int = 32, width: int = 46) -> Tensor:
    """Frames that are brighter from one to the next, with a red corner at the top left."""
    frames = (
        torch.full((count, height, width, 3), 16) + 8 * torch.arange(count)[:, None, None, None]
    )
    frames[:, :16, :16] = torch.tensor([250, 0, 0])
    return frames.byte()


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("video") / "twenty.mp4", numbered(20))


@pytest.mark.parametrize(
    ("count", "which"),
    [(1, [10]), (2, [5, 15]), (8, [1, 3, 6, 8, 11, 13, 16, 18]), (20, range(20))],
)
def test_the_middles_of_equal_parts(twenty: Path, count: int, which: list[int]) -> None:
    """The width is none that rows in memory are padded to."""
    found = read_frames(twenty, count)
    assert (found.frames.shape, found.frames.dtype) == ((count, 32, 46, 3), torch.uint8)
    error = found.frames.float() - numbered(20)[list(which)].float()
    assert error.abs().mean() < 2
    assert found.times.tolist() == pytest.approx([index / 10 for index in which])
    assert found.total == 20


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_frames_are_turned_as_a_player_turns_them(tmp_path: Path, degrees: int) -> None:
    given = numbered(3, 32, 48)
    found = read_frames(write(tmp_path / "turned.ts", given, rotate=degrees), 3).frames
    wanted = given.rot90(degrees // 90, (1, 2)).float()
    assert found.shape == wanted.shape
    assert (found.float() - wanted).abs().mean() < 2


def test_packets_without_a_frame(twenty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many frames as can be decoded are what is divided into parts."""
    monkeypatch.setattr(video, "_packets", lambda library, file: 30)
    assert read_frames(twenty, 2).times.tolist() == [0.5, 1.5]


def test_what_cannot_be_read_says_so(twenty: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame(format="s16", layout="mono", samples=800)
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    for path, count, words in (
        (tmp_path / "none.mp4", 8, "none.mp4 does not exist"),
        (tmp_path, 8, "is a folder"),
        (tmp_path / "text.mp4", 8, "cannot be read as a video"),
        (tmp_path / "sound.wav", 8, "has no video"),
        (twenty, 21, "has 20 frames, and 21 are asked for: ask for at most 20"),
        (twenty, 0, "count=0"),
        (8, 8, "path=8"),
    ):
        refused(lambda path=path, count=count: read_frames(path, count), words)


def test_the_extra_is_named(twenty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    refused(lambda: read_frames(twenty, 2), "tokenzoo[video]", kind=MissingDependencyError)
