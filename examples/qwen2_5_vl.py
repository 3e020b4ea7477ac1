"""An image or a video and a question for a Qwen2.5-VL: the answer with all visual tokens, and with fewer.

    python examples/qwen2_5_vl.py                             # downloads Qwen2.5-VL 3B (8 GB)
    python examples/qwen2_5_vl.py --model Qwen/Qwen2.5-VL-7B-Instruct --image photo.jpg --keep 0.5
    python examples/qwen2_5_vl.py --model Qwen/Qwen2-VL-2B-Instruct --recipe fastv
    python examples/qwen2_5_vl.py --video clip.mp4 --frames 16 --question "What happens?"
    python examples/qwen2_5_vl.py --image photo.jpg --video clip.mp4 --question "Is it the same place?"
    python examples/qwen2_5_vl.py --tiny                      # downloads nothing, answers nonsense

A token is a square of 28 x 28 pixels, so a larger image has more of them. `--keep` is a share of them, or a
count for each image, and for each slice in time (two frames) of a video. `--image` and `--video` may both
be given; `--video` without a path is a walk over a photograph.

    pip install 'tokenzoo[transformers,demo]'                 # and `av`, to read a video of your own
"""

from __future__ import annotations

from typing import Any

import llava
import llava_onevision_video
from comparing import compare, load, options, prompt
from transformers.video_utils import VideoMetadata, load_video

PATCHES = 4  # of 14 x 14 pixels, one token
WALK = "walk"


def film(where: str, frames: int) -> tuple[Any, VideoMetadata]:
    """Frames `[f, h, w, 3]` of a file or URL and when they were taken; of the walk, two a second."""
    if where != WALK:
        return load_video(where, num_frames=frames, backend="pyav")
    shown = llava_onevision_video.shown(None, frames)
    return shown, VideoMetadata(frames, fps=2.0, frames_indices=list(range(frames)))


def main() -> None:
    """Ask, and compare."""
    parser = options(__doc__, "Qwen/Qwen2.5-VL-3B-Instruct", "Describe what is shown.")
    parser.add_argument(
        "--image", help="a path or URL (default: a photograph, if no video is given)"
    )
    parser.add_argument("--video", nargs="?", const=WALK, help="a path or URL")
    parser.add_argument("--frames", type=int, default=8, help="of the video")
    given = parser.parse_args()
    if given.keep is None:
        given.keep = 0.25
    model, processor = load(given)
    shown: dict[str, Any] = {}
    kinds: list[str] = []
    if given.image is not None or given.video is None:
        shown["images"] = [llava.shown(given.image)]
        kinds.append("image")
    if given.video is not None:
        frames, when = film(given.video, given.frames)
        # They are chosen already.
        shown |= {"videos": [frames], "video_metadata": [when], "do_sample_frames": False}
        kinds.append("video")
    text = prompt(processor, given.question, *kinds)
    inputs = processor(text=[text], return_tensors="pt", **shown)
    grid = inputs[f"{kinds[0]}_grid_thw"][0]  # slices, rows and columns of patches
    compare(model, processor, inputs, given, int(grid[1:].prod()) // PATCHES)


if __name__ == "__main__":
    main()
