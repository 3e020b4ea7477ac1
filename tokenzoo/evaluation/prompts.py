"""What a user asks about images: a file of prompts, and the folder with the images.

prompts.txt      one prompt a line; prompts and images are paired in turn
prompts.jsonl    {"image": "a.jpg", "prompt": "What is this?"} a line
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


@dataclass(frozen=True)
class Prompt:
    """A prompt about one image.

    Attributes:
        image: the image's file.
        text: the words, without a placeholder for the image.
    """

    image: Path
    text: str


def read_prompts(file: Path, folder: Path, count: int | None = None, seed: int = 0) -> list[Prompt]:
    """Read prompts and the images that they are about.

    The lines of a `.txt` file are paired with the images of the folder, sorted by their paths, in turn: the
    first line with the first image, and so on; whichever are fewer begin again, until all were used. In a
    `.jsonl` file each line names its image, relative to the folder; other entries of a line are not read.

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
    image, text = record.get("image"), record.get("prompt")
    if not isinstance(image, str) or not isinstance(text, str) or not image or not text.strip():
        raise BadArgumentError(
            f"{name} is {quote(line)}; it needs an image and a prompt, such as {EXAMPLE}"
        )
    path = folder / image
    if not path.is_file():
        raise BadArgumentError(
            f"{name} names the image {quote(image)}, and there is no file {path}; name images relative to "
            "the folder of --images"
        )
    return Prompt(path, text.strip())
