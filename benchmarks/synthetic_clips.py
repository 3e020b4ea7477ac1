"""Clips of known redundancy, as tensors and as small video files."""

from __future__ import annotations

from pathlib import Path

import av
from torch import Tensor


def write(path: Path, frames: Tensor, *, rate: int = 10, rotate: int = 0) -> Path:
    """Write uint8 frames `[f, h, w, 3]` as a video of H.264, nearly without loss.

    Args:
        path: .mp4, .mkv or .ts.
        frames: of even height and width.
        rate: frames a second.
        rotate: degrees, anticlockwise, by which a player shall turn them (.ts alone).
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "4"}
        turned = f"h264_metadata=display_orientation=insert:rotate={rotate}"
        filters = av.BitStreamFilterContext(turned, stream) if rotate else None
        for frame in [*frames.numpy(), None]:
            image = None if frame is None else av.VideoFrame.from_ndarray(frame, format="rgb24")
            for packet in stream.encode(image):
                for one in filters.filter(packet) if filters else [packet]:
                    container.mux(one)
    return path
