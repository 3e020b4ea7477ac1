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
# FastVID cuts into eight segments at least, which would be single frames here; and pixels have no CLS.
RECIPES = {
    "holitom": ({}, {"retained": 0.25}),
    "fastvid": ({"segments": 1, "attention_source": "received"}, {"retained": 0.25}),
    "prunevid": ({}, {"retained": 0.5}),
}
"""Options of each, and that of the authors' own counts."""
SHEETS = {
    "moving": "--recipe holitom,prunevid,fastvid,random --frames 8",
    "cut": "--recipe holitom,prunevid,tome --frames 8",
}


@dataclass(frozen=True)
class Clip:
    """A clip of which it is known what changes.

    Attributes:
        frames: `[f, 3, h, w]` in 0..1.
        still: `[f, n]` bool, the patches that are the same in all frames of their scene.
        square: `[f, n]` bool, those under something that moves.
        scenes: `[f]` int64.
    """

    frames: Tensor
    still: Tensor
    square: Tensor
    scenes: Tensor


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
    share = torch.linspace(0, 1, FRAMES)[:, None, None, None]
    return {
        "static": Clip(static, all_, none, scene),
        "moving": Clip(moving, ~covered.any(0).expand(FRAMES, -1), covered, scene),
        "cut": Clip(torch.where(later[:, None, None, None], other, one), all_, none, later.long()),
        "noise": Clip(noise, none, none, torch.arange(FRAMES)),
        "fade": Clip(torch.lerp(one, other, share), none, none, scene),
    }


@dataclass(frozen=True)
class Seen:
    """What became of a clip.

    Attributes:
        starts: the first frames of the segments.
        still: share of the still patches that share an output with other frames; None: there are none.
        square: the same of those under the square.
        others: the same of all others.
        mixed: outputs with tokens of several scenes.
    """

    starts: tuple[int, ...]
    still: float | None
    square: float | None
    others: float | None
    mixed: int


def seen(recipe: str, clip: Clip, tower: bool = False, keep: float = 0.125) -> Seen:
    """Apply a recipe to a clip; `keep` is one frame's tokens of eight."""
    trace = traced(tokenzoo.build(recipe, keep=keep, **RECIPES[recipe][0]), clip, tower)

    def share(mask: Tensor) -> float | None:
        return float(trace.shared[mask].float().mean()) if mask.any() else None

    of_scenes = [trace.sizes[:, clip.scenes == s].sum(1) > 0 for s in clip.scenes.unique()]
    return Seen(
        trace.starts,
        share(clip.still),
        share(clip.square),
        share(~clip.still & ~clip.square),
        int((torch.stack(of_scenes).sum(0) > 1).sum()),
    )


def own_count(recipe: str, clip: Clip, tower: bool = False) -> float:
    """Return how many tokens the authors' own counts keep of a clip, in frames of tokens."""
    options, own = RECIPES[recipe]
    return traced(tokenzoo.build(recipe, keep=1.0, **options, **own), clip, tower).tokens / N


def tokens(clip: Clip) -> Tensor:
    """The pixels of each patch around 0, `[1, f * n, c]`."""
    pattern = "f c (h p) (w q) -> 1 (f h w) (c p q)"
    return rearrange(clip.frames - 0.5, pattern, p=PATCH, q=PATCH)


def traced(zoo: tokenzoo.zoo.Method, clip: Clip, tower: bool) -> ClipTrace:
    """Apply a recipe over frames to the pixels of a clip, or to features of the shipped model."""
    if tower:
        return trace_clip(zoo, digits.load_digits_vit(), clip.frames * 2 - 1)
    x = tokens(clip)
    attention = (x.view(FRAMES, N, -1) @ x.view(FRAMES, N, -1).mT).softmax(-1).mean(1).view(1, -1)
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
    """The rows of the table."""
    heads = "clip", "recipe", "segments begin at", "still", "square", "others", "mixed", "own count"
    rows = [heads, ("---",) * len(heads)]
    for name, clip in clips(tower).items():
        for recipe in RECIPES:
            one = seen(recipe, clip, tower)
            shares = [
                "" if share is None else f"{share:.0%}"
                for share in (one.still, one.square, one.others)
            ]
            begins = ", ".join(map(str, one.starts))
            rows.append(
                (
                    name,
                    recipe,
                    begins,
                    *shares,
                    str(one.mixed),
                    f"{own_count(recipe, clip, tower):.2f}",
                )
            )
    return [f"| {' | '.join(row)} |" for row in rows]


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
