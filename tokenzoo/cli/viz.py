"""`tokenzoo viz IMAGE...`: which patches share a token, drawn over photographs or a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from torch import Tensor

from tokenzoo.cli.options import output_file, parse_keep, split
from tokenzoo.cli.viz_clips import draw_clip, is_clip
from tokenzoo.cli.viz_images import Reader, reader
from tokenzoo.errors import BadArgumentError
from tokenzoo.tools import viz
from tokenzoo.tools.tracing import Trace, trace_tokens
from tokenzoo.tools.viz import Panel, gallery
from tokenzoo.tools.viz_clips import ANIMATED
from tokenzoo.zoo import build

CAPTION = (
    "One colour of outline is one token, filled with the mean colour of its patches. Dark and hatched: "
    "dropped."
)
SMALLER = (
    "Of a recipe that works on the image: the smaller one that the model saw, with its patches."
)
RANDOM = "The weights are random: these groups say nothing about a trained model (--weights, --pretrained)."

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("viz")
def run(
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files, or one video file; collage:SEED is a collage of digits.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str, typer.Option(help="A model of timm, or digits, the shipped model.")
    ] = "digits",
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            help="Recipes to show; a list, or repeated. [default: evoprune; of a video holitom]"
        ),
    ] = None,
    keep: Annotated[str, typer.Option(help="Tokens to keep: 64, 0.25 or 25%.")] = "0.25",
    sites: Annotated[
        bool, typer.Option("--sites", help="Draw a picture after each block that reduces.")
    ] = False,
    weights: Annotated[
        Path | None, typer.Option(help="The model's weights: .safetensors or .pth.")
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Let timm download trained weights.")
    ] = False,
    see_through: Annotated[
        float,
        typer.Option(min=0, max=1, help="Opacity of the image over the fill, from 0 to 1."),
    ] = 0.35,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames of the video to show. [default: 8]")
    ] = None,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The picture to write; of a video also .gif or .webp."),
    ] = Path("viz.png"),
) -> None:
    """Draw which patches of images share a token at the end, or after each block; or of a video.

    The model sees each frame of a video alone. A recipe over frames (holitom, fastvid, prunevid) works on
    the tokens that leave the model, of the whole clip; other recipes work in each frame.

    Nothing is downloaded unless --pretrained says so; without it and --weights, a model of timm has random
    weights, and its groups mean nothing.
    """
    clip = frames is not None or any(map(is_clip, images))
    recipes = split(recipe or ["holitom" if clip else "evoprune"], "recipe")
    budget = parse_keep(keep)
    zoos = {name: build(name, keep=budget.value) for name in recipes}
    output_file(out, (".png", *ANIMATED) if clip else (".png",))
    viz.figure_class()  # matplotlib missing is an error now, not after the work
    if clip and (len(images) > 1 or sites):
        what = "--sites" if sites else f"{len(images)} files"
        raise BadArgumentError(
            f"{what} with a video; pass one video, without --sites, or images without --frames"
        )
    console = Console(highlight=False)
    eyes = reader(model, weights=weights, pretrained=pretrained)
    if clip:
        title = f"What is left of {Path(images[0]).name}: {model}, keep {budget.text}"
        draw_clip(
            *(console, eyes, zoos, images[0], frames or 8, out),
            title=title,
            caption="" if eyes.trained else RANDOM,
            see_through=see_through,
        )
        return
    x = eyes.read(images)

    light = eyes.light(x)
    panels = [
        [Panel(picture, Path(name).name)] for picture, name in zip(light, images, strict=True)
    ]
    columns = [("original", "")]
    captions = [CAPTION] if eyes.trained else [RANDOM, CAPTION]
    for name, zoo in zoos.items():
        trace = trace_tokens(zoo, eyes.model, x)
        columns[0] = ("original", f"{trace.before} tokens")
        if trace.small is not None:
            captions.append(SMALLER)
        after = [trace.tokens(block) for block in trace.plans or [None]]
        console.print(
            f"{name}: {trace.before} -> {', '.join(map(str, after))} tokens", soft_wrap=True
        )
        chosen = list(trace.plans) if sites and trace.plans else [None]
        for block in chosen:
            detail = f"{trace.tokens(block)} tokens"
            columns.append((name, detail if block is None else f"block {block}: {detail}"))
            for index, row in enumerate(panels):
                row.append(Panel(_picture(trace, eyes, light, index, block, see_through)))
    gallery(
        panels,
        columns,
        out,
        title=f"Which patches share a token: {model}, keep {budget.text}",
        caption=" ".join(dict.fromkeys(captions)),
    )
    if not eyes.trained:
        console.print(RANDOM, soft_wrap=True)
    console.print(f"Picture: {out}", soft_wrap=True, markup=False)


def _picture(
    trace: Trace, eyes: Reader, light: Tensor, index: int, block: int | None, see_through: float
) -> Tensor:
    """Draw one picture, over the image or over the smaller one that the model read."""
    image = light[index] if trace.small is None else eyes.light(trace.small[index])
    return trace.picture(image, index, block, see_through=see_through)
