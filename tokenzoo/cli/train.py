"""`tokenzoo train RECIPE`: the learned parts of a recipe, or a model with reduction on, by distillation."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table

from tokenzoo._core.validation import check_count
from tokenzoo.cli.options import output_file, parse_keep
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation.training import (
    DigitsTask,
    FolderTask,
    Interrupted,
    Progress,
    Training,
    TrainingTask,
    as_json,
    train,
)
from tokenzoo.learned import modules
from tokenzoo.zoo import Method, build

CONTROLS = ("random", "pool")
INTERRUPTED = 130  # exit code, as of a process that SIGINT ended
MODEL = "digits-vit"

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("train")
def run(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The recipe file that is written.")] = Path(
        "recipe.json"
    ),
    model: Annotated[
        str, typer.Option(help=f"{MODEL}, the shipped one; with a folder as --data, as in `tune`.")
    ] = MODEL,
    data: Annotated[
        str,
        typer.Option(help="digits: collages with labels; or a folder of images, without labels."),
    ] = "digits",
    keep: Annotated[str, typer.Option(help="Tokens to keep: 64, 0.25 or 25%.")] = "0.125",
    steps: Annotated[int, typer.Option(help="Training steps.")] = 1000,
    batch: Annotated[int, typer.Option(help="Images of a step.")] = 24,
    rate: Annotated[float, typer.Option(help="Highest learning rate of the parts.")] = 1e-3,
    tune_model: Annotated[
        bool, typer.Option("--tune-model", help="Train the model, too; its weights are written.")
    ] = False,
    anneal: Annotated[
        float, typer.Option(help="Share of the steps in which the tokens fall to --keep.")
    ] = 0.0,
    samples: Annotated[int, typer.Option(help="Collages that are scored.")] = 500,
    seed: Annotated[int, typer.Option(help="Of the weights, the noise and the data.")] = 0,
    every: Annotated[int, typer.Option(help="Steps between checkpoints, and scores.")] = 200,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint of an interrupted training.")
    ] = False,
    curve: Annotated[
        Path | None, typer.Option(help="A JSON file for losses, scores and controls.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of torch.")] = None,
) -> None:
    """Train a recipe's learned parts so that the reduced model answers as the bare one, which is frozen.

    Ctrl-C writes a checkpoint next to the output and exits with 130; --resume goes on from there, to the
    same weights. `tokenzoo.load("recipe.json").attach(model)` uses the result.
    """
    output_file(out, (".json",))
    if curve is not None:
        output_file(curve, (".json",))
    if threads is not None:
        torch.set_num_threads(check_count("threads", threads))
    how = Training(
        steps=steps, rate=rate, seed=seed, tune_model=tune_model, anneal=anneal, every=every
    )
    method = _method(recipe, parse_keep(keep).value, seed)
    saved = out.with_suffix(".checkpoint.safetensors")
    _check_resume(saved, resume)
    task = _task(model, data, check_count("batch", batch), check_count("samples", samples), seed)
    before = _scores(task, method)
    try:
        with Bar(console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task("", total=steps)

            def tell(now: Progress) -> None:
                said = f"loss {now.noted['loss']:.3f}, {now.noted['keep']:.0f} tokens"
                progress.update(bar, completed=now.step, description=said)

            found = train(method, task, how, path=saved, tell=tell)
    except Interrupted as stopped:
        typer.echo(f"{stopped}; {saved} has the state: add --resume to go on", err=True)
        raise typer.Exit(INTERRUPTED) from stopped
    method.save(out)
    if tune_model:
        _save_model(task.model, out)
    after = _scores(task, method, trained=True)
    saved.unlink(missing_ok=True)
    scores = {**before, **after}
    Console().print(_table(scores, task.name))
    typer.echo(f"{recipe} is in {out}{_files(method, out, tune_model)}")
    if curve is not None:
        about: dict[str, object] = {"recipe": recipe, "keep": keep, **asdict(how), "batch": batch}
        curve.write_text(as_json({**about, "on": task.name, "scores": scores}, found))


def _method(recipe: str, keep: int | float, seed: int) -> Method:
    """Return the recipe, with the seed if it takes one."""
    method = build(recipe, keep=keep)
    return build(recipe, keep=keep, seed=seed) if modules(method.recipe.steps) else method


def _check_resume(saved: Path, resume: bool) -> None:
    if saved.exists() and not resume:
        raise BadArgumentError(
            f"{saved} is the checkpoint of a training that was interrupted: pass --resume to go on, or "
            "delete it"
        )
    if resume and not saved.exists():
        raise BadArgumentError(f"--resume: there is no checkpoint {saved}; leave --resume out")


def _task(model: str, data: str, batch: int, samples: int, seed: int) -> TrainingTask:
    """Return what is trained on.

    Raises:
        BadArgumentError: the model does not go with the data.
    """
    if data == "digits":
        if model != MODEL:
            raise BadArgumentError(
                f"--model {model} with --data digits: only {MODEL} reads them. Pass a folder of images as "
                "--data to train on another model"
            )
        return DigitsTask(batch, samples, seed)
    if model == MODEL:
        raise BadArgumentError(f"--data {data} with --model {MODEL}: name a model for these images")
    return FolderTask(model, Path(data), batch, seed=seed)


def _scores(
    task: TrainingTask, method: Method, *, trained: bool = False
) -> dict[str, dict[str, float]]:
    """Return the scores of the method, and before training those of the bare model and the controls."""
    task.model.eval()
    made: dict[str, Method | None] = {"trained" if trained else "untrained": method}
    if not trained:
        keep = method.recipe.keep
        made = {"bare": None, **{name: build(name, keep=keep) for name in CONTROLS}, **made}
        if not modules(method.recipe.steps):
            made[f"{method.name}, not tuned"] = made.pop("untrained")
    found: dict[str, dict[str, float]] = {}
    for name, one in made.items():
        if one is None:
            found[name] = task.score(task.model)
        else:
            # In training mode nothing is said of untrained weights; it is put back before the score.
            with one.attach(task.model.train()):
                found[name] = task.score(task.model.eval())
    return found


def _table(scores: dict[str, dict[str, float]], name: str) -> Table:
    made = Table(title=f"on {name}, data that no step has seen")
    names = [*next(iter(scores.values()))]
    made.add_column("")
    for one in names:
        made.add_column(one, justify="right")
    for row, found in scores.items():
        made.add_row(row, *(f"{found[one]:.4f}" for one in names))
    return made


def _save_model(model: Any, out: Path) -> None:
    from safetensors.torch import save_model

    save_model(model, str(out.with_suffix(".model.safetensors")))


def _files(method: Method, out: Path, tuned: bool) -> str:
    """Return the other files that were written, in words."""
    parts = [out.with_suffix(".safetensors")] if modules(method.recipe.steps) else []
    whole = [out.with_suffix(".model.safetensors")] if tuned else []
    return "".join(f", {path}" for path in (*parts, *whole))
