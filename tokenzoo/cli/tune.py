"""`tokenzoo tune`: the recipe that keeps most of what your model says of your images, at a given time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tokenzoo._core.validation import check_count
from tokenzoo.cli.eval import chosen
from tokenzoo.cli.options import output_file
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation.answers import LONGEST, prompted
from tokenzoo.evaluation.models import FOCUS
from tokenzoo.evaluation.statistics import estimate
from tokenzoo.evaluation.target import parse_target
from tokenzoo.evaluation.tune import Candidate, Tuned, tune
from tokenzoo.evaluation.unlabelled import unlabelled

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("tune")
def run_it(
    model: Annotated[
        str,
        typer.Argument(
            help="A model of timm with trained weights (NAME.TAG), a checkpoint folder of transformers, "
            f"or {FOCUS}; with --prompts a vision-language model: a checkpoint's folder or hub name."
        ),
    ],
    images: Annotated[
        Path, typer.Option(help="A folder with images like those that the model will see.")
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="What a vision-language model is asked: a prompt a line (.txt), paired with the images "
            'in turn, or lines {"image": ..., "prompt": ...} (.jsonl); a video has "frames": [...].'
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(help="0.5x: half of the bare model's time; 64 tokens; or 0.25 of the tokens."),
    ] = "0.5x",
    recipe: Annotated[
        list[str] | None, typer.Option(help="Recipes. [default: all; the controls always run]")
    ] = None,
    out: Annotated[Path, typer.Option(help="The recipe file that is written.")] = Path(
        "recipe.json"
    ),
    count: Annotated[
        int | None, typer.Option(help="Images, or prompts, at most. [default: all]")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Pixels on a side. [default: the model's]")
    ] = None,
    answer_tokens: Annotated[
        int | None, typer.Option(help="Tokens of an answer at most; with --prompts. [default: 16]")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Of torch; with --prompts. [default: a GPU if there is one]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draw of images, or of prompts.")] = 0,
    rounds: Annotated[int, typer.Option(help="Rounds of the timing.")] = 5,
    threads: Annotated[int | None, typer.Option(help="Threads of torch.")] = None,
) -> None:
    """Find the recipe that keeps most of what a model says, without labels, and write it as a recipe file.

    Each recipe is scored by how near the model's outputs stay to the bare model's, on your images (and
    prompts), and timed on this machine. `tokenzoo.load("recipe.json").attach(model)` uses the winner.
    """
    wanted = parse_target(target)
    output_file(out, (".json",))
    names = None if recipe is None else chosen(recipe)
    if threads is not None:
        torch.set_num_threads(check_count("threads", threads))
    check_count("rounds", rounds)
    refuse_options(prompts, {"answer-tokens": answer_tokens, "device": device}, size)
    if prompts is None:
        subject = unlabelled(model, images, size=size, count=count, seed=seed)
    else:
        longest = LONGEST if answer_tokens is None else answer_tokens
        subject = prompted(
            model, images, prompts, answer_tokens=longest, count=count, seed=seed, device=device
        )
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=None)
        found = tune(
            subject,
            wanted,
            names,
            rounds=rounds,
            tell=lambda text: progress.update(bar, description=text),
        )
    found.winner.job.method().save(out)
    Console().print(table(found, subject.samples, "images" if prompts is None else "prompts"))
    for line in said(found, out):
        typer.echo(line)


def refuse_options(prompts: Path | None, only: Mapping[str, object], size: int | None) -> None:
    """Refuse options that would do nothing.

    Args:
        prompts: the file of prompts.
        only: options that only prompts have.
        size: an option that only vision models have.

    Raises:
        BadArgumentError: one of them was given, and does not apply.
    """
    for name, value in only.items():
        if prompts is None and value is not None:
            raise BadArgumentError(
                f"--{name} {value} without --prompts: it is for vision-language models; leave it out"
            )
    if prompts is not None and size is not None:
        raise BadArgumentError(
            f"--size {size} with --prompts: the model's processor chooses the size; leave it out"
        )


def table(found: Tuned, samples: int, what: str) -> Table:
    """Return the candidates that saw all images, or prompts, the best first."""
    made = Table(
        title=f"likeness to the bare model on {samples} {what}",
        caption="* a control; > on the Pareto front; +- half of the 95 % interval",
    )
    for name in ("", "recipe", "tokens", "operations", "time", "likeness", "same answer"):
        made.add_column(name, justify="left" if name == "recipe" else "right")
    front = found.front
    for one in found.finalists:
        likeness = estimate(one.scores)
        same = f"{100 * sum(one.agreement) / len(one.agreement):.1f} %" if one.agreement else ""
        made.add_row(
            ">" if one in front else "",
            described(one),
            str(one.tokens),
            f"{one.budget.flops:.2f}",
            f"{one.time[0]:.2f}",
            f"{likeness.value:.4f} +-{likeness.half:.4f}",
            same,
        )
    return made


def described(one: Candidate) -> str:
    """Return the name of a candidate with its options."""
    options = ", ".join(f"{name}={value}" for name, value in one.job.options.items())
    return one.job.recipe + "*" * one.control + (f" ({options})" if options else "")


def said(found: Tuned, out: Path) -> Sequence[str]:
    """Return what is said below the table."""
    lines: list[str] = []
    if found.refused:
        lines.append(f"do not run here, or not at this target: {', '.join(sorted(found.refused))}")
    winner = found.winner
    lines.append(
        f"{described(winner)} with {winner.tokens} tokens, at {winner.time[0]:.2f} of the time, "
        f"is in {out}: the most alike, or a faster one that is shown to lose next to nothing against it"
    )
    if winner.control:
        lines.append("a control is the best: no method is worth its complexity here")
    elif found.against is not None:
        gap = found.against
        lines.append(
            f"against the best control: {gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f}), "
            f"p = {gap.p:.2g}"
        )
    return lines
