"""`tokenzoo eval`: what recipes keep of a model's answers, next to the time and operations that they save.

One row for each task, recipe and budget is appended to the results file as soon as it is measured. The same
command goes on where an earlier run was stopped.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tokenzoo import plugins
from tokenzoo._core.quoting import quote
from tokenzoo._core.validation import check_choice, check_count
from tokenzoo.cli.eval_hard import below_hard, hard_tables
from tokenzoo.cli.eval_report import below, controls_of, table
from tokenzoo.cli.options import output_file, parse_keeps, split
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation import Job, Key, ResultsFile, Row, Subject, TaskOptions, jobs, run
from tokenzoo.evaluation.candidates import ready_recipes
from tokenzoo.evaluation.hard import hard_samples
from tokenzoo.evaluation.on_ray import run_on_ray
from tokenzoo.evaluation.summary import summarize
from tokenzoo.evaluation.sweep import with_controls
from tokenzoo.evaluation.tasks import NO_MODEL, OWN_IMAGES, TASKS, prepare

app = typer.Typer(add_completion=False, rich_markup_mode=None)

ROUNDS, QUICK_ROUNDS = 3, 1
SEEDS, QUICK_SEEDS = 3, 1
ENGINES = ("process", "ray")


@app.command("eval")
def run_it(
    ctx: typer.Context,
    task: Annotated[
        list[str] | None, typer.Option(help=f"Tasks: all, or {', '.join(TASKS)}. [default: digits]")
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            help="Recipes: all, or a list of names. [default: evoprune,tome and controls]"
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Budgets: counts (64) and shares (0.25, 25%). [default: 0.5,0.25,0.125]"),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The results file, JSON lines; rows that it has are not run again.")
    ] = Path("results.jsonl"),
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="PATH, or TASK=PATH: a folder or parquet file with images. [default: scikit-learn's]"
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model, where the task takes one.")] = None,
    samples: Annotated[int | None, typer.Option(help="Samples that are scored.")] = None,
    size: Annotated[int | None, typer.Option(help="Pixels on a side of an image.")] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Seeds of a recipe that is random. [default: 3; quick: 1]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    rounds: Annotated[
        int | None, typer.Option(help="Rounds of the timing; 0: none. [default: 3; quick: 1]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch.")] = None,
    engine: Annotated[
        str, typer.Option(help="Where the jobs run: process (this one), or ray (a Ray cluster).")
    ] = "process",
    quick: Annotated[
        bool, typer.Option(help="Fewer samples, rounds and seeds, for a first look.")
    ] = False,
    hard: Annotated[
        bool,
        typer.Option(
            "--hard",
            help="Also the scores on the samples that downsample gets wrong at equal tokens.",
        ),
    ] = False,
) -> None:
    """Measure what recipes keep of a model's answers, and the time that they take.

    Each row holds the score of every sample, so that recipes can be compared on the same ones.
    Intervals hold 95 %. A recipe that does not fit the model gives a row with the reason.
    """
    check_choice("engine", engine, *ENGINES)
    names = split(task or ["digits"], "task")
    names = tuple(one for one in TASKS if one not in NO_MODEL) if names == ("all",) else names
    recipes = chosen(recipe or ["evoprune,tome,random,uniform,pool,downsample"])
    keeps = [one.value for one in parse_keeps(keep or ["0.5,0.25,0.125"])]
    check_count("rounds", 0 if rounds is None else rounds, least=0)
    rounds = (QUICK_ROUNDS if quick else ROUNDS) if rounds is None else rounds
    seeds = (QUICK_SEEDS if quick else SEEDS) if seeds is None else seeds
    wanted = jobs(recipes, keeps, check_count("seeds", seeds))
    if threads is not None:
        torch.set_num_threads(check_count("threads", threads))
    file = ResultsFile(output_file(out, (".jsonl",)))
    file.rows()  # a damaged file is an error before anything is loaded
    paths = data_of(names, data or [])
    options = {
        name: TaskOptions(model, paths.get(name), samples, size, seed, quick) for name in names
    }
    subjects = [prepare(name, of_task) for name, of_task in options.items()]

    def rows_of(subject: Subject, done: Container[Key]) -> Iterator[Row]:
        its = with_controls(subject, wanted)
        if engine == "process":
            return run(subject, its, rounds=rounds, done=done)
        return run_on_ray(
            subject, options[subject.task], its, rounds=rounds, done=done, threads=threads or 1
        )

    typed = {name: value for name, value in ctx.params.items() if was_typed(ctx, name)}
    rows = sweep(file, subjects, wanted, rows_of, command(typed))
    console = Console()
    for found in summarize(rows, controls_of(rows)):
        console.print()
        console.print(table(found, console.width))
        lines = below(found)
        if hard:
            groups = hard_samples(found)
            for made in hard_tables(found, groups):
                console.print(made)
                console.print()
            lines += below_hard(groups)
        for line in lines:
            console.print(line, markup=False, highlight=False)
    typer.echo(f"{out}: {len(file.rows())} rows")


def chosen(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the recipes that were given; "all" is all that need no training.

    Raises:
        UnknownNameError: there is no such recipe; names the nearest.
    """
    names = split(texts, "recipe")
    if names == ("all",):
        return tuple(ready_recipes())
    for name in names:
        plugins.find("recipes", name)
    return names


def data_of(tasks: Sequence[str], texts: Sequence[str]) -> dict[str, Path]:
    """Return where the images of each task are, from PATH (for every task that takes images) and TASK=PATH.

    Raises:
        BadArgumentError: a task that is not run, or that takes no images.
    """
    found: dict[str, Path] = {}
    for text in texts:
        task, equals, path = text.partition("=")
        if equals and task in TASKS:
            if task not in tasks or task in OWN_IMAGES:
                raise BadArgumentError(
                    f"data {quote(text)}; it must be for one of the tasks that are run and take images: "
                    f"{', '.join(name for name in tasks if name not in OWN_IMAGES) or 'there is none'}"
                )
            found[task] = Path(path)
        else:
            found |= {name: Path(text) for name in tasks if name not in (*found, *OWN_IMAGES)}
    return found


def was_typed(ctx: typer.Context, name: str) -> bool:
    """Whether an option was given in the command, and is not a default."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def command(options: Mapping[str, Any]) -> str:
    """Return the command with these options for a shell; of files and folders, only the last name."""
    words = ["tokenzoo", "eval"]
    for name, value in options.items():
        words.append("--" + "no-" * (value is False) + name.replace("_", "-"))
        if isinstance(value, Path) or (isinstance(value, str) and Path(value).exists()):
            words.append(Path(value).name)
        elif name == "data":
            words[-1:] = [word for text in value for word in ("--data", without_folder(text))]
        elif isinstance(value, list | tuple):
            words.append(",".join(str(item) for item in cast("Sequence[Any]", value)))
        elif not isinstance(value, bool):
            words.append(str(value))
    return shlex.join(words)


def without_folder(text: str) -> str:
    """Return PATH, or TASK=PATH, with the last name of the path alone."""
    task, equals, path = text.partition("=")
    return f"{task}={Path(path).name}" if equals and task in TASKS else Path(text).name


def sweep(
    file: ResultsFile,
    subjects: Sequence[Subject],
    wanted: Sequence[Job],
    rows_of: Callable[[Subject, Container[Key]], Iterator[Row]],
    command: str,
) -> list[Row]:
    """Run what the file does not hold yet, under a progress bar; return all rows that were asked for."""
    facts = {(one.task, one.model_name): one.facts for one in subjects}
    done = file.check(facts)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        total = sum(len(with_controls(subject, wanted)) + 1 for subject in subjects)
        bar = progress.add_task("", total=total)
        for subject in subjects:
            here = [key for key in done if (key.task, key.model) in facts]
            progress.update(bar, description=subject.task)
            progress.advance(bar, sum(key.task == subject.task for key in here))
            for found in rows_of(subject, done):
                row = replace(found, command=command)
                file.append(row)
                done[row.key] = row
                progress.advance(bar)
    asked = {job.key(subject) for subject in subjects for job in with_controls(subject, wanted)}
    asked |= {Key(one.task, one.model_name) for one in subjects}
    return [row for row in done.values() if row.key in asked]
