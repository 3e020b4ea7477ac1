"""The demo's picture: the tokens of the first collages' patches, at one budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tokenzoo.cli.demo_rows import Row
from tokenzoo.cli.options import KeepOption
from tokenzoo.tools.digits import Collages
from tokenzoo.tools.tracing import trace_tokens
from tokenzoo.tools.viz import Panel, gallery
from tokenzoo.zoo import build

SHOWN = 3  # collages: the first ones, not selected
SEE_THROUGH = 0.35
CAPTION = (
    "One colour of outline is one token at the end, filled with the mean colour of its patches, the "
    "photograph shining through. Dark and hatched: dropped on the way, some after they had been attended "
    "to. downsample: the smaller image that the model saw, with its patches. Below: the digit that the "
    "model reads in the marked (red) cell."
)


def write(
    path: Path, vit: nn.Module, data: Collages, rows: Sequence[Row], keep: KeepOption
) -> None:
    """Draw every recipe that reaches `keep`, on the first collages."""
    images = data.images[:SHOWN]
    answers = [int(answer) for answer in data.answer[:SHOWN]]
    panels = [
        [Panel(_light(image), f"marked: {answer}")]
        for image, answer in zip(images, answers, strict=True)
    ]
    columns = [("original", f"{rows[0].tokens} tokens")]
    for row in rows:
        if row.keep != keep or row.problem:
            continue
        pictures, read = _run(vit, images, row.recipe, keep)
        for line, picture, digit, answer in zip(panels, pictures, read, answers, strict=True):
            line.append(Panel(picture, f"reads {digit}", digit == answer))
        columns.append((row.recipe, f"{'control, ' if row.control else ''}{row.tokens} tokens"))
    title = f"Which patches share a token: keep {keep.text}"
    gallery(panels, columns, path, title=title, caption=CAPTION)


def _run(vit: Any, images: Tensor, recipe: str, keep: KeepOption) -> tuple[list[Tensor], list[int]]:
    """Return pictures of the reduced images, and the digits that the model reads."""
    trace = trace_tokens(build(recipe, keep=keep.value), vit, images)
    seen = images if trace.small is None else trace.small
    pictures = [
        trace.picture(_light(image), index, see_through=SEE_THROUGH)
        for index, image in enumerate(seen)
    ]
    return pictures, [int(digit) for digit in trace.output[:, :10].argmax(1)]


def _light(image: Tensor) -> Tensor:
    """Map an image from -1..1 to 0..1."""
    return image / 2 + 0.5
