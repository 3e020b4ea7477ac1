"""The demo's picture: what became of the first collages' patches, at one budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenzoo.commands.demo_rows import Row
from tokenzoo.commands.options import Keep
from tokenzoo.digits import Collages
from tokenzoo.plan import Plan
from tokenzoo.runtime.attach import Attached
from tokenzoo.viz import Panel, gallery, merged_groups, shrunk_image
from tokenzoo.zoo import build

SHOWN = 3  # collages: the first ones, whatever they look like
SEE_THROUGH = 0.35
CAPTION = (
    "One colour of outline is one token at the end, filled with the mean colour of its patches, the "
    "photograph shining through. Dark and hatched: dropped on the way, some after they had been attended "
    "to. downsample: the smaller image that the model saw, with its patches. Below: the digit that the "
    "model reads in the marked (red) cell."
)


def write(path: Path, vit: nn.Module, data: Collages, rows: Sequence[Row], keep: Keep) -> None:
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


def _run(vit: Any, images: Tensor, recipe: str, keep: Keep) -> tuple[list[Tensor], list[int]]:
    """Pictures of what a recipe does to the images, and the digits that the model then reads."""
    seen: list[Tensor] = []

    def look(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        del module, output
        seen.append(args[0])  # as the recipe's own hook has resized it, if it does

    with build(recipe, keep=keep.value).attach(vit, trace=True) as attached:
        handle = vit.patch_embed.register_forward_hook(look)
        try:
            with torch.inference_mode():
                logits: Tensor = vit(images)  # [b, 60]
        finally:
            handle.remove()
        pictures = _pictures(attached, images, seen[0], vit.patch_embed.patch_size)
    return pictures, [int(digit) for digit in logits[:, :10].argmax(1)]


def _pictures(
    attached: Attached, images: Tensor, seen: Tensor, patch: tuple[int, int]
) -> list[Tensor]:
    budget = attached.plan()
    if budget.entering < budget.tokens:
        grid = (seen.shape[2] // patch[0], seen.shape[3] // patch[1])
        return [shrunk_image(_light(image), grid) for image in seen]
    prefix = budget.prefix
    # Where nothing was to be removed there is no record.
    reduced = budget.features < budget.tokens
    plan = attached.record if reduced else Plan.identity(len(images), prefix + budget.tokens)
    grid = (images.shape[2] // patch[0], images.shape[3] // patch[1])
    return [
        merged_groups(_light(image), plan, grid, prefix, index=index, see_through=SEE_THROUGH)
        for index, image in enumerate(images)
    ]


def _light(image: Tensor) -> Tensor:
    """An image in -1..1 as one in 0..1."""
    return image / 2 + 0.5
