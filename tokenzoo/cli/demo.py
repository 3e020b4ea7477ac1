"""`tokenzoo demo`: cost and accuracy of each method, on a shipped model and test digits.

Nothing is downloaded, and no result is selected: every recipe runs with every budget, the controls and the
methods, and what the table shows is what was measured in this one run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from tokenzoo.cli import demo_picture, demo_report, demo_rows
from tokenzoo.cli.options import KeepOption, is_control, output_file, parse_keeps, split
from tokenzoo.errors import BadArgumentError
from tokenzoo.tools import digits, viz

KEEP = "0.5,0.25,0.125,16"
RECIPES = "evoprune,tome,random,uniform,pool,downsample"

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(frozen=True)
class Settings:
    """The options of the command, checked.

    Attributes:
        keeps: the budgets.
        recipes: names, methods and controls.
        images: number of test collages.
        rounds: number of timing rounds; each uses another part of the images.
        seed: of the collages.
        threads: of torch.
        out: the picture to write.
        json: the file with all figures to write, or None.
    """

    keeps: tuple[KeepOption, ...]
    recipes: tuple[str, ...]
    images: int
    rounds: int
    seed: int
    threads: int
    out: Path
    json: Path | None

    def __post_init__(self) -> None:
        for recipe in self.recipes:
            is_control(recipe)  # an unknown name is an error before anything runs
        if self.rounds > self.images:
            raise BadArgumentError(
                f"--rounds {self.rounds} with --images {self.images}; every round shows other images: ask "
                "for at least as many images as rounds"
            )
        output_file(self.out, (".png",))
        if self.json is not None:
            output_file(self.json, (".json",))

    @property
    def command(self) -> str:
        """The equivalent command line, with all defaults written out."""
        keeps = ",".join(keep.text for keep in self.keeps)
        return (
            f"tokenzoo demo --keep {keeps} --recipes {','.join(self.recipes)} --images {self.images} "
            f"--rounds {self.rounds} --seed {self.seed} --threads {self.threads}"
        )


@app.command("demo")
def run(
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Tokens to keep: 64, 0.25 or 25%; a list, or repeated. [default: {KEEP}]"
        ),
    ] = None,
    recipes: Annotated[
        list[str] | None,
        typer.Option(help=f"Recipes to show; a list, or repeated. [default: {RECIPES}]"),
    ] = None,
    images: Annotated[int, typer.Option(min=2, help="Number of test collages.")] = 256,
    rounds: Annotated[
        int, typer.Option(min=1, help="Timing rounds; the collages are split among them.")
    ] = 8,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("demo.png"),
    seed: Annotated[int, typer.Option(help="Seed of the collages.")] = 0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch. [default: torch's]")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="JSON file for all figures.")] = None,
) -> None:
    """Compare recipes on a shipped model: cost, time, accuracy, and a picture of what merged.

    The model is a small vision transformer trained without any token reduction; it names the marked digit
    of a collage and counts all sixteen. The digits shown are test digits, which it has never seen.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    settings = Settings(
        keeps=parse_keeps(keep or [KEEP]),
        recipes=split(recipes or [RECIPES], "recipes"),
        images=images,
        rounds=rounds,
        seed=seed,
        threads=torch.get_num_threads(),
        out=out,
        json=json,
    )
    viz.figure_class()  # matplotlib missing is an error now, not after the work
    vit = digits.load_digits_vit()
    data = digits.collages("test", settings.images, seed=settings.seed)
    rows, noise = demo_rows.measured(vit, data, settings.keeps, settings.recipes, settings.rounds)

    console = Console(highlight=False)
    demo_report.show(console, rows, noise, images=settings.images, rounds=settings.rounds)
    keep_shown = settings.keeps[len(settings.keeps) // 2]
    demo_picture.write(settings.out, vit, data, rows, keep_shown)
    console.print(f"Picture (keep {keep_shown.text}): {settings.out}", soft_wrap=True, markup=False)
    if settings.json is not None:
        demo_report.write_json(
            settings.json, rows, noise, settings.command, settings.images, settings.threads
        )
        console.print(f"All figures: {settings.json}", soft_wrap=True, markup=False)
