"""`tokenzoo bench MODEL`: the cost and speedup of recipes on a whole model with random weights.

Times do not depend on the weights, and nothing is downloaded. Every recipe, controls included, runs with
every budget. The bare model runs twice; the difference between the two is the noise.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from rich.console import Console
from rich.progress import Progress

from tokenzoo._core.validation import check_choice
from tokenzoo.cli import bench_report
from tokenzoo.cli.options import KeepOption, is_control, output_file, parse_keeps, split
from tokenzoo.errors import BadArgumentError
from tokenzoo.tools import viz
from tokenzoo.tools.benchmark import (
    MODES,
    NAMES,
    WRITTEN_OUT,
    Candidate,
    Mode,
    Setting,
    Sizes,
    Table,
    Workload,
    attaching,
    check_mode,
    load,
    plot,
    run,
    unfused,
)
from tokenzoo.zoo import build

IMAGES = "evoprune,tome,random,uniform,downsample"
WHOLE = "evoprune,divprune,random,uniform"

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(frozen=True)
class Settings:
    """The options of the command, checked.

    Attributes:
        model: its name.
        recipes: names; (): the default recipes of the model.
        keeps: the budgets.
        modes: modes of running; each gives a table.
        sizes: of the model and of the call.
        setting: device, dtype, attention.
        rounds: of each table.
        warmup: calls of each model before them.
        written_out: whether there is a row with the unfused importance.
        video: the file whose frames are in the prompt, or None.
        out: the file with all figures, or None.
        plot: the picture, or None.
    """

    model: str
    recipes: tuple[str, ...]
    keeps: tuple[KeepOption, ...]
    modes: tuple[Mode, ...]
    sizes: Sizes
    setting: Setting
    rounds: int
    warmup: int
    written_out: bool
    video: Path | None
    out: Path | None
    plot: Path | None

    def __post_init__(self) -> None:
        for recipe in self.recipes:
            is_control(recipe)  # an unknown name is an error before anything runs
        for mode in self.modes:
            check_choice("mode", mode, *MODES)
        if self.out is not None:
            output_file(self.out, (".json",))
        if self.plot is not None:
            output_file(self.plot, (".png",))
            viz.figure_class()  # matplotlib missing is an error now, not after the work

    def candidates(self, work: Workload) -> list[Candidate]:
        """Return a candidate for every recipe at every budget."""
        recipes = self.recipes or split([WHOLE if work.multimodal else IMAGES], "recipe")
        found: list[Candidate] = []
        for keep in self.keeps:
            for recipe in recipes:
                prepare = attaching(build(recipe, keep=keep.value))
                found.append(Candidate(recipe, prepare, keep.value))
            if self.written_out:
                found.append(Candidate(WRITTEN_OUT, attaching(unfused(keep.value)), keep.value))
        return found


@app.command("bench")
def run_it(
    model: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(NAMES)}; a model of timm, torchvision:NAME, open_clip:NAME, "
            "transformers:TYPE, or a folder with a config.json of transformers."
        ),
    ],
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Recipes; a list, or repeated. [default: {IMAGES}; of multimodal models {WHOLE}]"
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="Tokens of an image to keep: 64, 0.25 or 25%; a list, or repeated. [default: 0.25]"
        ),
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(MODES)} (a CUDA graph of an image encoder); a list, or repeated. "
            "[default: eager]"
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Number of images or prompts.")] = 1,
    frames: Annotated[
        int | None,
        typer.Option(min=1, help="Frames of the video in a prompt. [default: the model's]"),
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option(help="Video file whose frames are in the prompt. [default: random pixels]"),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Blocks of the vision tower. [default: all]")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Layers of the language model. [default: all]")
    ] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="Use a small model of this kind.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    attention: Annotated[
        str, typer.Option(help="Attention of transformers' models: sdpa, flash_attention_2, ...")
    ] = "sdpa",
    rounds: Annotated[
        int, typer.Option(min=1, help="Timing rounds; each calls every model once.")
    ] = 5,
    warmup: Annotated[
        int, typer.Option(min=1, help="Untimed calls of each model before the first round.")
    ] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch. [default: torch's]")
    ] = None,
    written_out: Annotated[
        bool,
        typer.Option(
            "--unfused", help="Add a row: evoprune with importance from the whole attention map."
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file for all figures.")] = None,
    picture: Annotated[Path | None, typer.Option("--plot", help="PNG file for a plot.")] = None,
) -> None:
    """Measure recipes on a whole model against the bare one: time of its parts, floors, memory.

    The weights are random, for times do not depend on them; nothing is downloaded. All models take turns in
    one run, and what is shown are ratios.
    """
    settings = Settings(
        model=model,
        recipes=split(recipe, "recipe") if recipe else (),
        keeps=parse_keeps(keep or ["0.25"]),
        modes=cast("tuple[Mode, ...]", split(mode or ["eager"], "mode")),
        sizes=Sizes(batch, frames, depth, layers, tiny),
        setting=Setting(device, dtype, attention),
        rounds=rounds,
        warmup=warmup,
        written_out=written_out,
        video=video,
        out=out,
        plot=picture,
    )
    if threads is not None:
        torch.set_num_threads(threads)
    console = Console(highlight=False)
    tables: list[Table] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # libraries warn of random weights, which are intended
        try:
            work = load(settings.model, settings.sizes, settings.setting, video=settings.video)
            for one in settings.modes:
                check_mode(one, work)
            for one in settings.modes:
                tables.append(_measured(work, settings, one))
                bench_report.show(console, work, tables[-1])
                if (
                    out is not None
                ):  # after each, so that an interrupted run keeps its finished tables
                    bench_report.write_json(out, work, tables, settings.warmup)
        finally:
            logging.disable(logging.NOTSET)
    if out is not None:
        console.print(f"All figures: {out}", soft_wrap=True, markup=False)
    if picture is not None:
        plot.write(picture, work, tables, bench_report.title(work))
        console.print(f"Picture: {picture}", soft_wrap=True, markup=False)
    if all(row.problem for table in tables for row in table.rows[1:-1]):
        raise BadArgumentError(
            f"none of these recipes could be measured on {model}, for the reasons above: choose others "
            "with --recipe, or other budgets with --keep"
        )


def _measured(work: Workload, settings: Settings, mode: Mode) -> Table:
    """One table, under a progress bar that is drawn between the calls and never during one."""
    with Progress(console=Console(stderr=True), transient=True, auto_refresh=False) as progress:
        task = progress.add_task(f"{mode}: attaching, first calls", total=None)
        progress.refresh()

        def advance(done: int, total: int) -> None:
            progress.update(task, description=mode, completed=done, total=total)
            progress.refresh()

        return run(
            work,
            settings.candidates(work),
            mode=mode,
            rounds=settings.rounds,
            warmup=settings.warmup,
            between=advance,
        )
