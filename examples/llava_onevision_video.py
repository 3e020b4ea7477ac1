"""A video and a question for LLaVA-OneVision: the answer with all visual tokens, and with fewer.

    python examples/llava_onevision_video.py                  # downloads the 0.5B model (2 GB)
    python examples/llava_onevision_video.py --video clip.mp4 --frames 16 --keep 64
    python examples/llava_onevision_video.py --tiny           # downloads nothing, answers nonsense

`--keep` counts the tokens of one frame. The bare model reads 729, and pools them to 196 after the
encoder. Where frames are reduced in the encoder that pooling is left out, as in the paper: `--keep 196` is
the same prompt but for what the encoder saves, and anything below is a shorter prompt, too.

    pip install 'tokenzoo[transformers,demo]'                 # and `av`, to read a video of your own
"""

from __future__ import annotations

from typing import Any

import numpy as np
from comparing import compare, load, options, prompt
from sklearn.datasets import load_sample_image
from transformers.video_utils import load_video


def shown(where: str | None, frames: int) -> Any:
    """Frames `[t, h, w, 3]` of a file or URL; without one, a window that moves over a photograph."""
    if where is not None:
        return load_video(where, num_frames=frames, backend="pyav")[0]
    photograph = load_sample_image("china.jpg")
    side = 384
    lefts = np.linspace(0, photograph.shape[1] - side, frames).astype(int)
    return np.stack([photograph[:side, left : left + side] for left in lefts])


def main() -> None:
    """Ask, and compare."""
    checkpoint = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
    parser = options(__doc__, checkpoint, "What is shown in this video?")
    parser.add_argument("--video", help="a path or URL (default: a walk over a photograph)")
    parser.add_argument("--frames", type=int, default=8)
    given = parser.parse_args()
    if given.keep is None:
        given.keep = 12 if given.tiny else 64
    model, processor = load(given)
    text = prompt(processor, given.question, "video")
    frames = shown(given.video, given.frames)
    inputs = processor(videos=[frames], text=[text], return_tensors="pt")
    compare(model, processor, inputs, given)


if __name__ == "__main__":
    main()
