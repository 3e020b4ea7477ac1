"""Pictures of what is left of a clip: frame by frame, and as an animation.

    trace = trace_clip(tokenzoo.build("holitom"), vit, frames)
    pictures = clip_pictures(light, trace)                  # [f, 3, H, W]; light: [f, 3, h, w] in 0..1

A token that stays alone is its patch. Tokens that are merged within a frame have the colour of their group,
those that share an output with other frames one colour, and dropped ones are dark and hatched. An amber
outline is where an output stands; there are as many as tokens are left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenzoo._core.needs import need
from tokenzoo._core.validation import check_number
from tokenzoo.errors import BadArgumentError
from tokenzoo.tokens import shape_of
from tokenzoo.tools.clip_tracing import ClipTrace
from tokenzoo.tools.pixels import (
    LINE,
    darkened,
    edges,
    enlarged,
    line_colours,
    lined,
    patch_of_pixel,
)
from tokenzoo.tools.viz import shrunk_image

SHARED = (0.16, 0.45, 0.9)  # blue: tokens that share an output with other frames
GAP, HEADING = 8, 16  # pixels between the pictures of an animation, and above them
UNKNOWN = 500  # milliseconds of a frame whose time is not known
ANIMATED = (".gif", ".webp")


def clip_pictures(images: Tensor, trace: ClipTrace, *, see_through: float = 0.35) -> Tensor:
    """Draw what is left of each frame of a clip.

    Args:
        images: the frames, `[f, 3, h, w]` in 0..1; the small ones if the trace has `small` ones.
        trace: of the clip.
        see_through: opacity of the image over the colours, from 0 to 1.

    Returns:
        `[f, 3, H, W]` in 0..1, enlargements of the frames.

    Raises:
        BadArgumentError: another number of frames, or a shape that does not fit.
    """
    check_number("see_through", see_through, 0, 1)
    if images.ndim != 4 or len(images) != trace.frames:
        raise BadArgumentError(
            f"images have shape {shape_of(images)}; the trace is of {trace.frames} frames: "
            f"[{trace.frames}, 3, h, w]"
        )
    if trace.small is not None:
        return torch.stack([shrunk_image(image, trace.grid) for image in images])
    plan, shared = trace.plan, trace.shared
    dst = plan.dst[0].cpu().view(trace.frames, -1)  # [f, n]
    kept = plan.keep[0].cpu()
    stands = torch.zeros(plan.tokens, dtype=torch.bool)
    stands[kept[kept >= 0]] = True
    stands = stands.view_as(dst)
    several = torch.cat([trace.sizes.sum(1) > 1, torch.zeros(1, dtype=torch.bool)])[dst]
    drawn: list[Tensor] = []
    for f, image in enumerate(images):
        large = enlarged(image, trace.grid)
        patch = patch_of_pixel(trace.grid, large.shape[1:])  # [H, W]
        group = dst[f][patch]
        colour = torch.where(
            shared[f][patch], torch.tensor(SHARED)[:, None, None], line_colours(group, blue=False)
        )
        filled = torch.where(several[f][patch], torch.lerp(colour, large, see_through), large)
        filled = torch.where(group < 0, darkened(large), filled)
        here = stands[f][patch]
        own = edges(torch.where(here, patch, -1))
        drawn.append(lined(filled, own, torch.tensor(LINE)[:, None, None]))
    return torch.stack(drawn)


def write_animation(
    columns: Sequence[tuple[str, Tensor]], times: Sequence[float], path: str | Path
) -> Path:
    """Write pictures of a clip side by side as an animation that loops, by Pillow.

    Args:
        columns: a heading and the pictures `[f, 3, H, W]` in 0..1; smaller ones are enlarged.
        times: of the frames, in seconds; a frame is shown until the next, the last as long as the one
            before.
        path: .gif or .webp.

    Raises:
        MissingDependencyError: Pillow is not installed.
        BadArgumentError: there are no columns, or one has not a picture at each time.
    """
    f = len(times)
    if not f or not columns or any(len(pictures) != f for _, pictures in columns):
        raise BadArgumentError(
            f"pictures {[shape_of(pictures) for _, pictures in columns]} at {f} times; an animation has "
            "columns with a picture at each time"
        )
    library, write = need("PIL.Image", "viz", "pillow"), need("PIL.ImageDraw", "viz", "pillow")
    height = max(pictures.shape[2] for _, pictures in columns)
    images: list[Any] = []
    for at in range(f):
        parts = [library.fromarray(_pixels(pictures[at]).numpy()) for _, pictures in columns]
        parts = [
            part.resize((part.width * height // part.height, height), library.Resampling.NEAREST)
            for part in parts
        ]
        width = sum(part.width + GAP for part in parts) - GAP
        image = library.new("RGB", (width, HEADING + height), "white")
        left, draw = 0, write.Draw(image)
        for (heading, _), part in zip(columns, parts, strict=True):
            image.paste(part, (left, HEADING))
            draw.text((left + 2, 2), heading, fill="black")
            left += part.width + GAP
        images.append(image)
    steps = [UNKNOWN] * f
    if f > 1 and _known(times):
        steps = [round(1000 * (later - time)) for time, later in pairwise(times)]
        steps.append(steps[-1])
    images[0].save(path, save_all=True, append_images=images[1:], duration=steps, loop=0)
    return Path(path)


def _known(times: Sequence[float]) -> bool:
    """Whether the times are numbers that increase."""
    return all(map(math.isfinite, times)) and list(times) == sorted(set(times))


def _pixels(picture: Tensor) -> Tensor:
    """A picture as uint8 `[H, W, 3]`."""
    return (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous()
