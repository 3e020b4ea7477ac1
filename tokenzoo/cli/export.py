"""`tokenzoo export MODEL --recipe NAME --keep K OUT.onnx`: a model that carries fewer tokens, as a file."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.text import Text

from tokenzoo.cli.options import output_file, parse_keep
from tokenzoo.cli.viz_images import load
from tokenzoo.errors import BadArgumentError, ExportError
from tokenzoo.hooks.attach import find_adapter
from tokenzoo.tools import digits, model_loading, transformers_loading
from tokenzoo.tools.onnx import Exported, Given, check_installed, export
from tokenzoo.zoo import build

NO = 1  # exit code for a model that does not become a file
RANDOM = (
    "The weights are random: the file shows what it costs and computes nothing of use (--weights)."
)
# The name of the image size in each library.
SIZE = {
    "timm": "img_size",
    "torchvision": "image_size",
    "open_clip": "force_image_size",
    "transformers": "image_size",
}

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("export")
def run(
    model: Annotated[
        str,
        typer.Argument(
            help="A model of timm; torchvision:NAME, open_clip:NAME, transformers:TYPE; the folder of a "
            "transformers checkpoint; or digits, the shipped model.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The file to write.", show_default=False)],
    recipe: Annotated[str, typer.Option(help="The recipe to attach.")] = "evoprune",
    keep: Annotated[str, typer.Option(help="Tokens to keep: 64, 0.25 or 25%.")] = "0.25",
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Fixed batch size of the file. [default: any]"),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Size of the images in pixels. [default: the model's]")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="The model's weights: .safetensors or .pth.")
    ] = None,
) -> None:
    """Write a model with a recipe on it as an ONNX file, and compare the two.

    Nothing is downloaded: the weights are those of the file or the folder, otherwise random. Exit code
    0: in ONNX Runtime it computes what the model does; 1: it cannot be converted, or computes something
    else, and no file is written.
    """
    console, complain = Console(highlight=False), Console(stderr=True, highlight=False)
    zoo = build(recipe, keep=parse_keep(keep).value)
    output_file(out, (".onnx",))
    check_installed()
    made, example, trained = _made(model, weights, image_size, batch or 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # torch and its converter log their progress
        try:
            exported = export(zoo, made, example, out, dynamic=batch is None)
        except ExportError as error:
            complain.print(Text(f"tokenzoo: {error}"), soft_wrap=True)
            raise typer.Exit(NO) from error
        finally:
            logging.disable(logging.NOTSET)
    _say(console, exported)
    if not trained:
        complain.print(Text(RANDOM, style="bold yellow"), soft_wrap=True)


def _made(name: str, weights: Path | None, size: int | None, batch: int) -> tuple[Any, Given, bool]:
    """The model, images for it, and whether its weights are trained.

    Raises:
        BadArgumentError: options that this model does not take, or weights that do not fit.
    """
    if name == "digits":
        if weights is not None or size is not None:
            raise BadArgumentError("--weights and --image-size do not apply to the model 'digits'")
        return digits.load_digits_vit(), torch.randn(batch, 3, 64, 64), True
    folder = transformers_loading.is_folder(name)
    source = "transformers" if folder else name.rpartition(":")[0] or "timm"
    options: dict[str, Any] = {} if size is None else {SIZE.get(source, "image_size"): size}
    trained = weights is not None
    if folder and not trained and transformers_loading.has_weights(name):
        tower, trained = model_loading.Tower(transformers_loading.trained(name, options), ()), True
    else:
        tower = model_loading.create(name, **options)
        if weights is not None:
            load(tower.model, weights)
        else:
            model_loading.randomise(
                tower.model
            )  # a library's initial LayerScale of 1e-5 hides the blocks
    if not tower.size:
        adapter = find_adapter(tower.model)
        return tower.model, transformers_loading.inputs(tower.model, adapter, batch), trained
    return tower.model, torch.randn(batch, *tower.size), trained


def _say(console: Console, done: Exported) -> None:
    """Print the facts about the file, one a line."""
    images = "any number of" if done.dynamic else str(done.batches[0])
    counts = ", ".join(map(str, done.counts))
    operators = ", ".join(f"{count} {name}" for name, count in done.operators.items())
    rows = {
        "file": f"{done.path}, {done.size / 1e6:.1f} MB, opset {done.opset}",
        "takes": f"{', '.join(done.inputs)}: {images} images",
        "tokens": f"{done.tokens} -> {counts}",
        "error": f"{done.error:.1e} of the largest output, in ONNX Runtime, on other images "
        f"({' and '.join(map(str, done.batches))} at once)",
        "reductions": operators or "none of its own: the image is made smaller",
    }
    for name, value in rows.items():
        console.print(Text(f"{name:<12}{value}"), soft_wrap=True)
