"""What a user asks about images or videos: a file of prompts, and the folder with the images.

prompts.txt      one prompt a line; prompts and images are paired in turn
prompts.jsonl    {"image": "a.jpg", "prompt": "What is this?"} a line, or, about a video,
                 {"frames": ["1.jpg", "2.jpg"], "prompt": "What happens?"}
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tokenzoo._core.quoting import quote
from tokenzoo._core.validation import is_kind
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation.data import image_files

LINES, RECORDS = ".txt", ".jsonl"
EXAMPLE = '{"image": "a.jpg", "prompt": "What is this?"}'
VIDEO = '{"frames": ["1.jpg", "2.jpg"], "prompt": "What happens?"}'


@dataclass(frozen=True)
class Prompt:
    """A prompt about one image or video.

    Attributes:
        image: the image's file; or those of the frames of a video, in order.
        text: the words, without a placeholder for the image or video.
    """

    image: Path | tuple[Path, ...]
    text: str

    @property
    def frames(self) -> tuple[Path, ...]:
        """The files of the frames of a video; (): it is about an image."""
        return () if isinstance(self.image, Path) else self.image


def read_prompts(file: Path, folder: Path, count: int | None = None, seed: int = 0) -> list[Prompt]:
    """Read prompts and the images that they are about.

    The lines of a `.txt` file are paired with the images of the folder, sorted by their paths, in turn: the
    first line with the first image, and so on; whichever are fewer begin again, until all were used. In a
    `.jsonl` file each line names its image, or the frames of its video, relative to the folder; other
    entries of a line are not read.

    Args:
        file: of prompts, `.txt` or `.jsonl`.
        folder: with the images.
        count: prompts at most, drawn at random; None: all.
        seed: of the draw.

    Raises:
        BadArgumentError: no such file or folder, another suffix, no prompts, an empty or damaged line, or
            an image that is not there; names the line.
    """
    if file.suffix not in (LINES, RECORDS):
        raise BadArgumentError(
            f"{file} must end in {LINES}, with one prompt a line, or in {RECORDS}, with lines such as "
            f"{EXAMPLE}"
        )
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadArgumentError(f"{file} cannot be read as text: {error}") from error
    if not lines:
        raise BadArgumentError(f"{file} has no prompts; write one a line")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise BadArgumentError(
                f"line {number} of {file} is empty; each line is a prompt: delete it"
            )
    if file.suffix == RECORDS:
        found = [_record(line, f"line {n} of {file}", folder) for n, line in enumerate(lines, 1)]
    else:
        images = image_files(folder)
        found = [
            Prompt(images[place % len(images)], lines[place % len(lines)].strip())
            for place in range(max(len(images), len(lines)))
        ]
    if count is None or count >= len(found):
        return found
    return [found[place] for place in sorted(random.Random(seed).sample(range(len(found)), count))]


def _record(line: str, name: str, folder: Path) -> Prompt:
    """Return the prompt of a line of JSON."""
    try:
        given: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadArgumentError(f"{name} is not JSON ({error}); it is such as {EXAMPLE}") from error
    record = cast("dict[str, Any]", given) if is_kind(given, dict) else {}
    image, frames, text = (record.get(key) for key in ("image", "frames", "prompt"))
    files = _strings([image] if frames is None else frames)
    fits = len(files) == 1 if frames is None else image is None and len(files) > 1
    if not fits or not isinstance(text, str) or not text.strip():
        raise BadArgumentError(
            f"{name} is {quote(line)}; it needs an image and a prompt, such as {EXAMPLE}, or the frames of "
            f"a video, two or more: {VIDEO}"
        )
    paths = tuple(_file(folder, one, name) for one in files)
    return Prompt(paths[0] if frames is None else paths, text.strip())


def _strings(values: object) -> list[str]:
    """Return a list of names of files; [] if it is something else."""
    several = cast("list[Any]", values) if is_kind(values, list) else []
    return several if all(isinstance(one, str) and one for one in several) else []


def _file(folder: Path, image: str, name: str) -> Path:
    """Return the file of an image."""
    path = folder / image
    if not path.is_file():
        raise BadArgumentError(
            f"{name} names the image {quote(image)}, and there is no file {path}; name images relative to "
            "the folder of --images"
        )
    return path
