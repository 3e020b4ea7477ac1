"""Frames of a video file, evenly spaced, by PyAV (the extra `video`).

clip = read_frames("clip.mp4", 8)
clip.frames                # uint8 [8, h, w, 3]
clip.times                 # seconds, [8]
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenzoo._core.needs import need
from tokenzoo._core.quoting import quote
from tokenzoo._core.validation import check_count, is_kind
from tokenzoo.errors import BadArgumentError

SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
"""What the names of video files end in; `read_frames` reads others, too."""


@dataclass(frozen=True)
class VideoFrames:
    """Frames of a video.

    Attributes:
        frames: uint8 `[f, h, w, 3]`, red, green and blue, turned as a player shows them.
        times: `[f]` float64, seconds on the file's clock; NaN where the file says none.
        total: frames of the whole video.
    """

    frames: Tensor
    times: Tensor
    total: int


def read_frames(path: str | os.PathLike[str], count: int) -> VideoFrames:
    """Read the middle frames of `count` equal parts of a video.

    The video is decoded from its first frame to the last that is needed, and only the frames that are
    returned stay in memory.

    Args:
        path: a file that FFmpeg can read.
        count: number of frames.

    Raises:
        MissingDependencyError: PyAV is not installed.
        BadArgumentError: no such file, not a video, or it has fewer frames than `count`.
    """
    check_count("count", count)
    if not is_kind(path, str | os.PathLike):
        raise BadArgumentError(f"path={quote(path)}; it must be the name of a video file")
    file = Path(path)
    if not file.is_file():
        found = "is a folder" if file.is_dir() else "does not exist"
        raise BadArgumentError(f"{file} {found}; pass a video file")
    library = need("av", "video", "av (PyAV)")
    try:
        total = _packets(library, file)
        found, seen = _decoded(library, file, _middles(total, count, file))
        if len(found) < count:  # some packets hold no frame, as in a damaged file
            total = seen
            found, _ = _decoded(library, file, _middles(total, count, file))
    except (library.error.FFmpegError, UnicodeDecodeError) as error:
        raise BadArgumentError(
            f"{file} cannot be read as a video ({error}); pass a file that FFmpeg decodes"
        ) from error
    frames, times = zip(*found, strict=True)
    return VideoFrames(torch.stack(frames), torch.tensor(times, dtype=torch.float64), total)


def _middles(total: int, count: int, file: Path) -> list[int]:
    """The indices of the middle frames of `count` equal parts."""
    if total < count:
        raise BadArgumentError(
            f"{file} has {total} frames, and {count} are asked for: ask for at most {total}"
        )
    return [(2 * part + 1) * total // (2 * count) for part in range(count)]


def _stream(container: Any, file: Path) -> Any:
    """The video of a file, decoded by several threads."""
    if not container.streams.video:
        raise BadArgumentError(f"{file} has no video, only other streams; pass a video file")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return stream


def _packets(library: Any, file: Path) -> int:
    """The number of packets, which hold a frame each; the header does not always say it."""
    with library.open(str(file)) as container:
        return sum(packet.size > 0 for packet in container.demux(_stream(container, file)))


def _decoded(library: Any, file: Path, wanted: list[int]) -> tuple[list[tuple[Tensor, float]], int]:
    """The frames at sorted indices with their times, and how many were decoded for that."""
    found: list[tuple[Tensor, float]] = []
    seen = turns = 0
    with library.open(str(file)) as container:
        for frame in container.decode(_stream(container, file)):
            if seen == 0:
                # A telephone's video is stored as its sensor lies; not every frame says so.
                turns = round(frame.rotation / 90)  # anticlockwise
            if seen == wanted[len(found)]:
                time = float("nan") if frame.time is None else float(frame.time)
                found.append((_pixels(frame).rot90(turns, (0, 1)).contiguous(), time))
            seen += 1
            if len(found) == len(wanted):
                break
    return found, seen


def _pixels(frame: Any) -> Tensor:
    """A frame as uint8 `[h, w, 3]`; its rows are padded in memory."""
    plane = frame.reformat(format="rgb24").planes[0]
    rows = torch.frombuffer(bytearray(plane), dtype=torch.uint8).view(-1, plane.line_size)
    return rows[:, : 3 * plane.width].reshape(-1, plane.width, 3)
