"""Clips of known redundancy, and what recipes over frames make of them: the tables of docs/video.md.

    python -m benchmarks.synthetic_clips                    # features are the pixels of a patch
    python -m benchmarks.synthetic_clips --tower            # those of the shipped model's last block
    python -m benchmarks.synthetic_clips --sheets           # the pictures, by `tokenzoo viz`

Eight frames of 16 x 16 patches. In each clip it is known which patches stay as they are in their scene. For
pixels the scenes are random textures, of which no two patches are alike; for the model, collages of digits.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

import tokenzoo
from tokenzoo.cli import app
from tokenzoo.evidence import Evidence
from tokenzoo.tools import digits
from tokenzoo.tools.clip_tracing import ClipTrace, segment_starts, trace_clip

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"
FRAMES, SIDE, PATCH, SQUARE = 8, 64, 4, 16
GRID = SIDE // PATCH
N = GRID * GRID
CUT = FRAMES // 2
# Both cut into eight segments at least, which would be single frames here.
OPTIONS = {"fastvid": {"segments": 1}, "flashvid": {"segments": 1}}
OWN = {"holitom": 0.25, "prunevid": 0.5, "fastvid": 0.25}
"""The share that the authors' own counts are of, where a recipe has them (`retained`)."""
CONTROLS = ("every_kth_frame", "random")
SHEETS = {
    "moving": "--recipe holitom,prunevid,evs,random --frames 8",
    "cut": "--recipe holitom,moviechat,tome --frames 8",
}


@dataclass(frozen=True)
class Clip:
    """A clip of which it is known what changes.

    Attributes:
        frames: `[f, 3, h, w]` in 0..1.
        still: `[f, n]` bool, the patches that are the same in all frames of their scene.
        square: `[f, n]` bool, those under something that moves.
        scenes: `[f]` int64.
        content: `[f, n]` int64, a number for what a patch shows: equal ones are the same pixels.
    """

    frames: Tensor
    still: Tensor
    square: Tensor
    scenes: Tensor
    content: Tensor


def clips(tower: bool = False, seed: int = 0) -> dict[str, Clip]:
    """Make the clips: static, moving, cut, noise, fade.

    Args:
        tower: of collages, for the shipped model; otherwise of textures.
        seed: of the textures and the noise.
    """
    g = torch.Generator().manual_seed(seed)
    one, other = torch.rand(2, 3, SIDE, SIDE, generator=g)
    square = torch.rand(3, SQUARE, SQUARE, generator=g)
    noise = torch.rand(FRAMES, 3, SIDE, SIDE, generator=g)
    if tower:
        one, other = (digits.collages("test", 2, seed=1).images / 2 + 0.5).clamp(0, 1)
        square = torch.tensor([1.0, 0.25, 0.25])[:, None, None]
    all_, none = torch.ones(FRAMES, N, dtype=torch.bool), torch.zeros(FRAMES, N, dtype=torch.bool)
    scene = torch.zeros(FRAMES, dtype=torch.int64)
    later = torch.arange(FRAMES) >= CUT
    static = one.repeat(FRAMES, 1, 1, 1)
    moving, covered = static.clone(), torch.zeros(FRAMES, GRID, GRID, dtype=torch.bool)
    top, size = (SIDE - SQUARE) // 2, SQUARE // PATCH
    for f in range(FRAMES):
        left = PATCH * (1 + f)  # a patch further in each frame
        moving[f, :, top : top + SQUARE, left : left + SQUARE] = square
        covered[f, top // PATCH : top // PATCH + size, 1 + f : 1 + f + size] = True
    covered = covered.flatten(1)  # [f, n]
    place = torch.arange(N).repeat(FRAMES, 1)
    shown, each = place.clone(), torch.arange(FRAMES * N).view(FRAMES, N)
    shown[covered] = N + torch.arange(size * size).repeat(FRAMES)
    share = torch.linspace(0, 1, FRAMES)[:, None, None, None]
    return {
        "static": Clip(static, all_, none, scene, place),
        "moving": Clip(moving, ~covered.any(0).expand(FRAMES, -1), covered, scene, shown),
        "cut": Clip(
            torch.where(later[:, None, None, None], other, one),
            *(all_, none, later.long(), place + N * later[:, None]),
        ),
        "noise": Clip(noise, none, none, torch.arange(FRAMES), each),
        "fade": Clip(torch.lerp(one, other, share), none, none, scene, each),
    }


@dataclass(frozen=True)
class Share:
    """What became of some patches of a clip, as shares of these patches.

    Attributes:
        merged: share an output with patches of other frames.
        dropped: are part of no output.
    """

    merged: float
    dropped: float

    def __str__(self) -> str:
        """Both, in per cent."""
        return f"{100 * self.merged:.0f} + {100 * self.dropped:.0f}"


def over_frames() -> list[str]:
    """Return the recipes of one step that needs frames; the controls come last."""
    found: list[str] = []
    for name in tokenzoo.list_recipes():
        steps = tokenzoo.build(name).recipe.steps
        if len(steps) == 1 and "frames" in steps[0].needs and name not in CONTROLS:
            found.append(name)
    return [*found, *CONTROLS]


def share(trace: ClipTrace, patches: Tensor) -> Share:
    """Return what became of the patches `[f, n]`, bool."""
    gone = (trace.plan.dst < 0).view(FRAMES, N)
    return Share(float(trace.shared[patches].float().mean()), float(gone[patches].float().mean()))


def alike(trace: ClipTrace, clip: Clip) -> float:
    """Return the share, of the patches merged over frames, whose output has equal patches alone."""
    slot, content = trace.plan.dst[0].clamp_min(0), clip.content.flatten()
    low, high = (
        content.new_zeros(trace.plan.kept).scatter_reduce(0, slot, content, how, include_self=False)
        for how in ("amin", "amax")
    )
    return float((low == high)[slot].view(FRAMES, N)[trace.shared].float().mean())


def mixed(trace: ClipTrace, clip: Clip) -> int:
    """Count the outputs with patches of several scenes."""
    parts = [trace.sizes[:, clip.scenes == scene].sum(1) > 0 for scene in clip.scenes.unique()]
    return int((torch.stack(parts).sum(0) > 1).sum())


def apply(
    recipe: str, clip: Clip, tower: bool = False, keep: float = 0.25, **own: float
) -> ClipTrace:
    """Apply a recipe to a clip; `own` is the share of the authors' own counts (`retained`)."""
    return traced(tokenzoo.build(recipe, keep=keep, **OPTIONS.get(recipe, {}), **own), clip, tower)


def tokens(clip: Clip) -> Tensor:
    """The pixels of each patch around 0, `[1, f * n, c]`."""
    pattern = "f c (h p) (w q) -> 1 (f h w) (c p q)"
    return rearrange(clip.frames - 0.5, pattern, p=PATCH, q=PATCH)


def traced(zoo: tokenzoo.zoo.Method, clip: Clip, tower: bool) -> ClipTrace:
    """Apply a recipe over frames to the pixels of a clip, or to features of the shipped model."""
    if tower:
        return trace_clip(zoo, digits.load_digits_vit(), clip.frames * 2 - 1)
    x = tokens(clip)
    each = x.view(FRAMES, N, -1)
    attention = (each @ each.mT).softmax(-1).mean(1).view(1, -1)  # [1, f * n]
    plan = zoo.reduce(x, frames=FRAMES, received_attention=attention).plan
    evidence = Evidence(x, mass=torch.ones(x.shape[:2]), frames=FRAMES)
    starts = segment_starts(zoo.recipe.steps[0], evidence)
    return ClipTrace(plan, FRAMES, (GRID, GRID), starts=starts)


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


def table(tower: bool) -> list[str]:
    """Return the rows of the tables: patches merged over frames + dropped, in per cent; own counts."""
    made = clips(tower)
    heads = "recipe", "static", "still", "square", "alike", "over the cut", "noise", "fade"
    rows = [heads, ("---",) * len(heads)]
    every = torch.ones(FRAMES, N, dtype=torch.bool)
    for name in over_frames():
        of = {clip: apply(name, one, tower) for clip, one in made.items()}
        moving = made["moving"]
        shares = [
            share(of["static"], every),
            share(of["moving"], moving.still),
            share(of["moving"], moving.square),
            f"{100 * alike(of['moving'], moving):.0f}" if of["moving"].shared.any() else "",
            mixed(of["cut"], made["cut"]),
            share(of["noise"], every),
            share(of["fade"], every),
        ]
        rows.append((name, *map(str, shares)))
    rows += [(), ("recipe", *made), ("---",) * (1 + len(made))]
    for name, retained in OWN.items():
        counts = [
            apply(name, one, tower, 1.0, retained=retained).tokens / N for one in made.values()
        ]
        rows.append((f"{name} ({retained})", *(f"{count:.2f}" for count in counts)))
    return [f"| {' | '.join(row)} |" if row else "" for row in rows]


def sheets() -> None:
    """Draw the pictures of the document, by the command that it names."""
    made = clips(tower=True)
    with TemporaryDirectory() as folder:
        for name, options in SHEETS.items():
            frames = (made[name].frames * 255).round().byte().movedim(1, -1)
            film, path = write(Path(folder) / f"{name}.mp4", frames), FOLDER / f"video-{name}.png"
            app(["viz", str(film), *options.split(), "-o", str(path)], standalone_mode=False)
            with Image.open(path) as image:
                small = image.convert("RGB").reduce(2)
            small.quantize(32).save(path, optimize=True)


if __name__ == "__main__":
    if "--sheets" in sys.argv:
        sheets()
    else:
        print("\n".join(table("--tower" in sys.argv)))
