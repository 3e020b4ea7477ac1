"""The clip of `tokenzoo viz`: its frames, and below each what is left of it; a sheet, or an animation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from tokenzoo.cli.viz_images import Reader
from tokenzoo.tools.clip_tracing import ClipTrace, trace_clip
from tokenzoo.tools.video import SUFFIXES, read_frames
from tokenzoo.tools.viz import Panel, gallery
from tokenzoo.tools.viz_clips import clip_pictures, write_animation
from tokenzoo.zoo import Method

CAPTION = (
    "An amber outline is a token that is left. Blue: patches that share one with other frames; another "
    "colour: with others of their frame; dark and hatched: dropped."
)


def is_clip(name: str) -> bool:
    """Whether this is the name of a video file."""
    return Path(name).suffix.lower() in SUFFIXES


def draw_clip(
    console: Console,
    eyes: Reader,
    zoos: Mapping[str, Method],
    name: str,
    frames: int,
    out: Path,
    *,
    title: str,
    caption: str,
    see_through: float,
) -> None:
    """Draw what recipes leave of a video.

    Args:
        console: where the counts are printed.
        eyes: the model.
        zoos: the recipes, by name.
        name: of the video file.
        frames: how many of its frames are shown.
        out: a .png is a sheet, a .gif or .webp an animation.
        title: above the sheet.
        caption: before the explanation of the colours.
        see_through: opacity of the frames over the colours.

    Raises:
        BadArgumentError: the file cannot be read, or has fewer frames.
    """
    clip = read_frames(name, frames)
    x = eyes.frames(clip.frames)
    light = eyes.light(x)
    times = [float(time) for time in clip.times]
    rows = [[Panel(frame) for frame in light]]
    columns = [("original", light)]
    for recipe, zoo in zoos.items():
        trace = trace_clip(zoo, eyes.model, x)
        seen = light if trace.small is None else eyes.light(trace.small)
        pictures = clip_pictures(seen, trace, see_through=see_through)
        console.print(f"{recipe}: {_said(trace)}", soft_wrap=True)
        notes = [f"{recipe}: {count} tokens" for count in trace.of_frames]
        rows.append([Panel(*pair) for pair in zip(pictures, notes, strict=True)])
        columns.append((f"{recipe}: {trace.tokens} tokens", pictures))
    caption = f"{caption} {CAPTION}".strip()
    if out.suffix.lower() == ".png":
        said = ["" if math.isnan(time) else f"{time:.2f} s" for time in times]
        heads = [(time, f"frame {at}") for at, time in enumerate(said)]
        gallery(rows, heads, out, title=title, caption=caption)
    else:
        write_animation(columns, times, out)
        console.print(caption, soft_wrap=True)
    console.print(f"Picture: {out}", soft_wrap=True, markup=False)


def _said(trace: ClipTrace) -> str:
    """The counts of a clip, in words."""
    before, shared = trace.plan.tokens, int(trace.shared.sum())
    if trace.small is not None:
        return f"{trace.frames} frames, made smaller -> {trace.tokens} tokens"
    dropped = int((trace.plan.dst < 0).sum())
    starts = (
        f"; segments begin at frames {', '.join(map(str, trace.starts))}" if trace.starts else ""
    )
    return (
        f"{trace.frames} frames, {before} -> {trace.tokens} tokens; {shared} share one with other frames, "
        f"{dropped} are dropped{starts}"
    )
